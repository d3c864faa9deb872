// A few tokens through a decoder block: what comes before attention, and what comes after it.
// Between two products there is too little to do for a second thread.
#include "../native/params.hpp"
#include "../native/simd.hpp"

extern "C" float sqrtf(float);

namespace gossamer::GOSSAMER_ISA {

void sparse_gemv(const GemvArgs &);
void lossless_gemvs(const GemvArgs *, int64_t);

namespace {

// out = x / rms(x) * weight, for each vector.
void rms_norm(const float *x, const float *weight, float eps, int64_t vectors, int64_t width,
              float *out) {
    for (int64_t v = 0; v < vectors; ++v, x += width, out += width) {
        Vec squares{};
        int64_t i = 0;
        for (; i + W <= width; i += W) squares += load(x + i) * load(x + i);
        float total = sum(squares);
        for (; i < width; ++i) total += x[i] * x[i];
        const float factor = 1.0f / sqrtf(total / static_cast<float>(width) + eps);
        for (i = 0; i < width; ++i) out[i] = weight[i] * (x[i] * factor);
    }
}

// Rotates the halves of each head by its token's angles.
void rotate(const DecoderBlockArgs &a, float *x, int64_t width) {
    const int64_t half = a.head / 2;
    for (int64_t v = 0; v < a.vectors; ++v) {
        const float *cos = a.cos + v * a.angle_stride, *sin = a.sin + v * a.angle_stride;
        for (float *head = x + v * width; head < x + (v + 1) * width; head += a.head)
            for (int64_t i = 0; i < half; ++i) {
                const float low = head[i], high = head[i + half];
                head[i] = low * cos[i] - high * sin[i];
                head[i + half] = high * cos[i + half] + low * sin[i + half];
            }
    }
}

void scatter(const DecoderBlockArgs &a, const float *x, int64_t width, const HeadRows &to) {
    for (int64_t v = 0; v < a.vectors; ++v)
        for (int64_t at = 0; at < width; at += a.head, x += a.head)
            memcpy(to.data + v * to.vector + at / a.head * to.head, x,
                   sizeof(float) * static_cast<size_t>(a.head));
}

// gate = silu(gate) * up; whole vectors, so both have room for W - 1 more.
void gate_up(float *gate, const float *up, int64_t count) {
    for (int64_t i = 0; i < count; i += W) {
        const Vec g = load(gate + i), magnitude = g < 0.0f ? g : -g;
        const Vec e = exp2_nonpositive(magnitude * LOG2E);
        const Vec sigmoid = (g < 0.0f ? e : broadcast(1.0f)) / (1.0f + e);
        store(gate + i, g * sigmoid * load(up + i));
    }
}

struct Product {
    const GemvArgs &weight;
    float *out;
};

// Weights times the same x, in one go where they can be.
template <int N>
void multiply(const float *x, const Product (&products)[N]) {
    GemvArgs args[N];
    bool lossless = true;
    for (int i = 0; i < N; ++i) {
        args[i] = products[i].weight;
        args[i].x = x;
        args[i].out = products[i].out;
        lossless = lossless && args[i].way >= GemvWay::nibbles;
    }
    if (lossless) return lossless_gemvs(args, N);
    for (const GemvArgs &a : args)
        a.way < GemvWay::nibbles ? sparse_gemv(a) : lossless_gemvs(&a, 1);
}

}  // namespace

void before_attention(const DecoderBlockArgs &a) {
    const int64_t width = a.query.depth, narrow = a.key.rows;
    Scratch scratch(sizeof(float) * static_cast<size_t>(a.vectors * (width + 2 * narrow)) + 2 * 64);
    float *normed = scratch.take<float>(a.vectors * width);
    float *key = scratch.take<float>(a.vectors * narrow);
    float *value = scratch.take<float>(a.vectors * narrow);
    rms_norm(a.x, a.norm, a.eps, a.vectors, width, normed);
    multiply<3>(normed, {{a.query, a.query.out}, {a.key, key}, {a.value, value}});
    if (a.rotate_query) rotate(a, a.query.out, a.query.rows);
    if (a.rotate_keys) rotate(a, key, narrow);
    scatter(a, key, narrow, a.keys);
    scatter(a, value, narrow, a.values);
}

void after_attention(const DecoderBlockArgs &a) {
    const int64_t width = a.vectors * a.out.rows, inner = a.vectors * a.up.rows;
    const int64_t floats = width + 2 * round_up(inner, W);
    Scratch scratch(sizeof(float) * static_cast<size_t>(floats) + 3 * 64);
    float *normed = scratch.take<float>(width);
    float *gate = scratch.take<float>(round_up(inner, W));
    float *up = scratch.take<float>(round_up(inner, W));
    multiply<1>(a.attended, {{a.out, a.out.out}});
    for (int64_t i = 0; i < width; ++i) a.out.out[i] += a.x[i];
    rms_norm(a.out.out, a.norm, a.eps, a.vectors, a.out.rows, normed);
    for (int64_t i = inner; i < round_up(inner, W); ++i) gate[i] = up[i] = 0.0f;
    multiply<2>(normed, {{a.gate, gate}, {a.up, up}});
    gate_up(gate, up, inner);
    multiply<1>(gate, {{a.down, normed}});
    for (int64_t i = 0; i < width; ++i) a.out.out[i] += normed[i];
}

}  // namespace gossamer::GOSSAMER_ISA
