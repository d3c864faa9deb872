// Plain records of the kernels of sparse weights; the rules of params.hpp hold.
#pragma once
#include <cstdint>

namespace gossamer {

enum class Dtype : int { float32 = 0, bfloat16 = 1 };

// A dense operand [batch, columns, width] times a weight [rows, columns].
struct Strips {
    const void *dense;
    void *out;
    Dtype dtype;  // of both
    int64_t batch, rows, columns, width;
    int64_t dense_batch, dense_row, out_batch, out_row;  // strides in elements
    const float *bias;                                   // [rows] or nullptr
    float low, high;                                     // results are clamped to
    int threads;
};

// A weight in panels: gossamer.kernels.support.Panels describes the tensors.
struct SpmmArgs {
    Strips strips;
    int64_t group;
    const int64_t *starts;
    int64_t panel;
    const int16_t *lines, *counts;
    const uint8_t *columns;
    const float *values;
};

// An N:M weight: `n` values, and their columns in the group, for every `m` columns of a row.
struct NmMatmulArgs {
    Strips strips;
    int64_t n, m;
    const float *values;     // [rows, columns / m, n]
    const uint8_t *indices;  // same shape
};

enum class Sums : int { int32 = 0, float32 = 1, uint8 = 2, int8 = 3 };

// An int8 weight in groups of rows that share their columns, times uint8 or int8 positions;
// gossamer.kernels.int8_weight.Int8Weight describes the tensors.
struct Int8SpmmArgs {
    const void *dense;  // [batch, columns, width] bytes, read as bytes ^ flip, or float32
    bool real;          // float32, read as the byte nearest to value * inverse + zero
    float inverse, zero;
    uint8_t flip;
    void *out;  // [batch, rows, width]
    Sums kind;  // of `out`
    int64_t batch, rows, columns, width;
    int64_t dense_batch, dense_row, out_batch, out_row;  // strides in elements
    int64_t group;
    const int64_t *starts;         // [lines + 1]
    const int32_t *quads;          // [quads, 4]
    const int8_t *values;          // of each line [group, quads of the line, 4]
    const int32_t *begin;          // [rows]: what sums begin with
    const float *factor, *offset;  // [rows]: of a sum on its way out, unless it stays an integer
    float low, high;               // results are clamped to
    int threads;
};

enum class GemvWay : int { gather = 0, spread = 1, expand = 2, nibbles = 3, bytes = 4, plain = 5 };

// A weight times a few vectors: in slices, compressed rows or bit masks (`sparse_gemv`), or dense
// (`lossless_gemv`: the ways from nibbles on; of the next fields these read `values` and `scales`).
struct GemvArgs {
    GemvWay way;
    const void *values;
    Dtype dtype;             // of the values; unused for nibbles and bytes
    const float *scales;     // [rows, blocks, 2] for nibbles, [rows, blocks] for bytes
    const int64_t *offsets;  // [runs + 1]; of lines where gathering, else of a row's entries
    int64_t runs;            // slices, or rows
    const void *columns;     // uint16, or uint32 where wide; unused when expanding
    bool wide;
    const uint64_t *bits;  // [rows, ceil(depth / 64)]; only when expanding
    const int32_t *lanes;  // [runs, 16]: rows of a slice, -1 for none; only when gathering
    const float *x;        // [vectors, depth]
    float *out;            // [vectors, rows]
    int64_t vectors, depth, rows;
    int threads;
};

// A row of `head` floats for each vector and each head of it; strides in floats.
struct HeadRows {
    float *data;
    int64_t vector, head;
};

// A Llama block for a few tokens, on one side of attention: the weights of that side, each with
// where its product goes; kernels/decoder_block describes the rest.
struct DecoderBlockArgs {
    GemvArgs query, key, value, out, gate, up, down;
    const float *x;     // [vectors, width]
    const float *norm;  // [width]
    float eps;
    const float *cos, *sin;  // [vectors or 1, head]
    int64_t angle_stride;    // between vectors
    int64_t head;
    HeadRows keys, values;  // where the products with key and value go
    bool rotate_query, rotate_keys;
    const float *attended;  // [vectors, width of the heads]
    int64_t vectors;
};

// A matrix in compressed sparse rows.
struct SparseRows {
    const int64_t *offsets;  // [rows + 1]
    const int32_t *indices;  // columns, ascending within a row
    const int32_t *order;    // entry j keeps its value at order[j]; nullptr: at j
    int64_t rows, columns;
};

// A float32 [images, positions, features] tensor; strides in elements, either positions or
// features contiguous.
struct Features {
    float *data;
    int64_t image, position, feature;
};

// output = input @ matrix^T + bias and dots = (left^T @ input) at the entries of the matrix,
// over all positions of all images.
struct SparseRowsArgs {
    SparseRows matrix;
    int64_t images, positions;
    Features input;       // features: columns
    Features output;      // features: rows; data == nullptr: no product
    const float *values;  // where `order` puts them
    const float *bias;    // [rows] or nullptr
    Features left;        // features: rows
    float *dots;          // where `order` puts them; nullptr: no dots
    int threads;
};

// out[n, columns] = activations[n, rows] @ weight[rows, columns], over the activations that are
// not zero; a row of the weight that only zeros meet is not read.
struct ActivationSparseArgs {
    const float *activations;
    const void *weight;
    Dtype dtype;
    int64_t batch, rows, columns;
    float *out;
    int threads;
};

// Every channel of float32 images with a kernel of its own; all tensors contiguous.
struct DepthwiseConvArgs {
    const float *image;   // [images, channels, height, width]
    const float *weight;  // [channels, kernel_height, kernel_width]
    const float *bias;    // [channels] or nullptr
    float *out;           // [images, channels, out_height, out_width]
    int64_t images, channels, height, width, out_height, out_width;
    int64_t kernel_height, kernel_width;
    int64_t stride;     // 1 or 2
    int64_t left, top;  // zeros before the image; those behind it follow from the sizes
    float low, high;    // results are clamped to
    int threads;
};

// One block of columns of a weight; kernels/sparsegpt_sweep describes the tensors.
struct SparsegptSweepArgs {
    float *weight;        // [rows, width]
    const float *factor;  // [width, width]
    uint8_t *mask;        // [rows, width]
    float *errors;        // [rows, width], contiguous
    float *loss;          // [rows]
    int64_t rows, width;
    int64_t weight_row, factor_row, mask_row;  // strides in elements
    int64_t n, m;                              // m == 0: the mask is given
    int threads;
};

// DSnoT's swaps; kernels/mask_swaps describes the tensors, all contiguous.
struct MaskSwapsArgs {
    const float *weight;                 // [rows, width]
    const uint8_t *mask;                 // [rows, width]
    const float *total, *norm, *steady;  // [width]
    const float *scores;                 // [rows, width]; read within groups only
    uint8_t *out;                        // [rows, width]
    int64_t *swaps;                      // [rows]
    double *before, *after;              // [rows]
    int64_t rows, width, cycles;
    double threshold;
    bool guarded;
    int64_t group;  // columns a group, 0 for none
    int threads;
};

// A convolution, the sum and clamp behind it and the quantisation behind those, at the positions
// that need it: where something read has changed. Images are [images, height, width, channels]
// with channels and features padded to whole vectors; masks are one byte a position.
struct DeltaConvArgs {
    const float *input;             // [images, height, width, channels]
    const uint8_t *changed;         // of the input
    const float *change;            // input minus what it was, where it changed
    const float *weight;            // [kernel, depth, features], or [kernel, features]: depthwise
    const float *bias;              // [features]
    const float *addend;            // [images, out_height, out_width, features] or nullptr
    const uint8_t *addend_changed;  // of the addend
    const float *step;              // [features]
    const uint8_t *afresh;          // one byte: compute every position from the input
    float *sums;                    // the convolution's own output, held; nullptr: depthwise
    float *output;                  // held: multiples of the steps, updated in place
    uint8_t *output_changed;        // where they did
    float *output_change;           // by how much, there
    int64_t *products;              // one number: inputs multiplied, with `features` weights each
    int64_t images, height, width, channels, depth, features, out_height, out_width;
    int64_t kernel_height, kernel_width, stride_y, stride_x, dilation_y, dilation_x, top, left;
    bool depthwise;
    float low, high;
    float sparse_below;  // share of changed inputs up to which only those are multiplied
    int threads;
};

// out = left + right.
struct AddArgs {
    const float *left, *right;
    float *out;
    int64_t count;
    int threads;
};

}  // namespace gossamer

// clang-format off
// Entry points: name, record.
#define GOSSAMER_WEIGHT_KERNELS(entry)   \
    entry(spmm, SpmmArgs)                \
    entry(int8_spmm, Int8SpmmArgs)       \
    entry(nm_matmul, NmMatmulArgs)       \
    entry(sparse_gemv, GemvArgs)         \
    entry(lossless_gemv, GemvArgs)       \
    entry(before_attention, DecoderBlockArgs) \
    entry(after_attention, DecoderBlockArgs) \
    entry(sparse_linear, SparseRowsArgs) \
    entry(sddmm, SparseRowsArgs)         \
    entry(depthwise_conv, DepthwiseConvArgs) \
    entry(sparsegpt_sweep, SparsegptSweepArgs) \
    entry(mask_swaps, MaskSwapsArgs) \
    entry(delta_conv, DeltaConvArgs) \
    entry(add, AddArgs) \
    entry(activation_sparse_matmul, ActivationSparseArgs)
// clang-format on
