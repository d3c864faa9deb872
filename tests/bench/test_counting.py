"""MacCounter equals closed forms exactly, counts what sparse kernels do, and hides no unknowns."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from gossamer.bench.counting import FORMULAS, MacCounter, register_macs, training_step_macs
from gossamer.kernels import (
    activation_sparse_matmul,
    balanced_sets,
    block_sparse_attention,
    depthwise_conv,
    gathered_attention,
    lossless_gemv,
    nm_matmul,
    pack,
    pack_lossless,
    sddmm,
    set_attention,
    sparse_gemv,
    spmm,
)
from gossamer.kernels.sparse_weight import SparsePattern
from gossamer.layers import SparseLinear
from gossamer.patterns import NM, BlockPattern, StripePattern, TokenPattern, Window
from gossamer.training import nm_mask


def count(run) -> int:
    with MacCounter() as counter:
        run()
    assert not counter.unknown
    return counter.total


size = st.integers(1, 6)


@settings(max_examples=30, deadline=None)
@given(size, size, size, st.booleans())
def test_a_linear_layer_is_rows_times_weights(rows, inputs, outputs, bias):
    layer, x = nn.Linear(inputs, outputs, bias=bias), torch.zeros(rows, inputs, requires_grad=True)
    exact = rows * inputs * outputs
    assert count(lambda: layer(x)) == exact
    output = layer(x).sum()
    assert count(output.backward) == 2 * exact


@settings(max_examples=30, deadline=None)
@given(size, size, st.integers(1, 3), st.integers(1, 3), st.integers(1, 2), st.booleans())
def test_a_convolution_is_positions_times_weights(batch, channels, groups, kernel, stride, back):
    layer = nn.Conv2d(channels * groups, 2 * groups, kernel, stride, padding=1, groups=groups)
    x = torch.zeros(batch, channels * groups, 7, 5, requires_grad=True)
    output = layer(x)
    exact = batch * output.shape[2] * output.shape[3] * layer.weight.numel()
    if back:
        assert count(output.sum().backward) == 2 * exact
    else:
        assert count(lambda: layer(x)) == exact


def test_a_transposed_convolution_reads_every_input_position():
    layer = nn.ConvTranspose2d(6, 4, 3, stride=2)
    assert count(lambda: layer(torch.zeros(2, 6, 9, 9))) == 2 * 81 * 6 * 4 * 9


@pytest.mark.parametrize(("causal", "pairs"), [(True, 10 * 11 // 2), (False, 100)])
def test_attention_is_pairs_times_twice_the_dimension(causal, pairs):
    q, k, v = (torch.zeros(2, 3, 10, 8, requires_grad=True) for _ in range(3))

    def attend():
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)

    assert count(attend) == 2 * 3 * pairs * 2 * 8
    assert count(attend().sum().backward) == 2 * 3 * pairs * 5 * 8  # logits once more


def sparse(rows=24, columns=32, density=0.2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    mask = SparsePattern.random(rows, columns, density=density, generator=generator).to_mask()
    return torch.where(mask, 1.0, 0.0)


@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_sparse_products_count_stored_entries(impl):
    weight = sparse()
    nnz, packed = int(weight.count_nonzero()), pack(weight)
    for rows in (1, 2, 16):
        assert count(lambda n=rows: sparse_gemv(packed, torch.ones(n, 32), impl=impl)) == rows * nnz
    lossless = pack_lossless(weight)
    ours = count(lambda: lossless_gemv(lossless, torch.ones(3, 32), impl=impl))
    assert ours == 3 * weight.numel(), "a dense kernel saves nothing"
    assert count(lambda: spmm(packed, torch.ones(32, 7), impl=impl)) == 7 * nnz
    assert count(lambda: spmm(packed, torch.ones(3, 32, 7), impl=impl)) == 21 * nnz


def test_torchs_own_sparse_product_counts_stored_entries():
    weight = sparse()
    pattern = SparsePattern.from_mask(weight != 0)
    coo = weight.to_sparse()
    assert count(lambda: coo @ torch.ones(32, 5)) == 5 * pattern.nnz
    assert FORMULAS["aten::mm"]((torch.ones(7, 24), coo), None) == 7 * pattern.nnz
    assert count(lambda: weight @ torch.ones(32, 5)) == 5 * 24 * 32, "a dense kernel saves nothing"


def test_a_sparse_layer_trains_at_its_entries():
    dense = nn.Linear(32, 24)
    layer = SparseLinear.from_dense(dense, sparse() != 0)
    nnz, x = layer.values.numel(), torch.ones(7, 32, requires_grad=True)
    assert count(lambda: layer(x)) == 7 * nnz
    assert count(layer(x).sum().backward) == 2 * 7 * nnz
    masked = nn.Linear(32, 24)
    masked.weight.data *= sparse()
    assert count(lambda: masked(x)) == 7 * 32 * 24, "a mask saves nothing"


def test_structured_and_activation_sparse_products():
    weight = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    packed = pack(weight * nm_mask(weight, 2, 4), NM(2, 4))
    assert count(lambda: nm_matmul(packed, torch.ones(16, 5))) == 8 * 16 // 2 * 5
    x = torch.zeros(3, 16)
    x[0, :4] = x[2, 5] = 1.0
    assert count(lambda: activation_sparse_matmul(x, torch.ones(16, 9))) == 5 * 9
    image, filters = torch.ones(2, 6, 8, 8), torch.ones(6, 3, 3)
    result = depthwise_conv(image, filters, padding=(1, 1, 1, 1))
    assert count(lambda: depthwise_conv(image, filters, padding=(1, 1, 1, 1))) == result.numel() * 9
    pattern = SparsePattern.from_mask(sparse() != 0)
    assert count(lambda: sddmm(torch.ones(24, 5), torch.ones(5, 32), pattern)) == 5 * pattern.nnz


@pytest.mark.parametrize("lists", [1, 2])
def test_sparse_attention_counts_computed_pairs(lists):
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, 40, 8, generator=generator).unbind()
    share = 2 // lists
    blocks = BlockPattern.from_mask(torch.rand(2, lists, 3, 3, generator=generator) < 0.6, block=16)
    mask = torch.rand(2, lists, 10, 40, generator=generator) < 0.3
    tokens = TokenPattern.from_mask(mask, group=4)
    stripes = StripePattern.from_mask(mask, group=4)
    window = Window(sink=4, local=8)
    pairs = (
        (lambda: block_sparse_attention(q, k, v), 2 * 2 * 40 * 41 // 2),
        (lambda: block_sparse_attention(q, k, v, blocks), blocks.pairs(40, 40) * share),
        (lambda: block_sparse_attention(q, k, v, window=window), 4 * window.pairs(40, 40)),
        (lambda: gathered_attention(q, k, v, tokens), tokens.pairs(40) * share),
        (lambda: gathered_attention(q, k, v, stripes), stripes.pairs(40) * share),
    )
    for run, computed in pairs:
        assert count(run) == computed * 2 * 8


def test_other_work_is_counted_apart():
    model = nn.Sequential(nn.ReLU(), nn.LayerNorm(8), nn.Softmax(-1))
    with MacCounter() as counter:
        model(torch.ones(5, 8)).topk(2)
    assert counter.total == 0
    assert counter.elementwise >= 3 * 40
    assert counter.overhead_ops == 40


def test_a_custom_operator_without_a_formula_is_named():
    library = torch.library.Library("gossamer_test_counting", "FRAGMENT")
    library.define("twice(Tensor x) -> Tensor")
    library.impl("twice", lambda x: x + x, "CompositeExplicitAutograd")
    run = torch.ops.gossamer_test_counting.twice
    with MacCounter() as counter:
        run(torch.ones(4))
    assert counter.unknown == {"gossamer_test_counting::twice"}
    register_macs("gossamer_test_counting::twice", lambda args, result: 3 * result.numel())
    try:
        assert count(lambda: run(torch.ones(4))) == 12
        with pytest.raises(ValueError, match="without a formula, got 'gossamer_test_counting"):
            register_macs("gossamer_test_counting::twice", lambda args, result: 0)
    finally:
        del FORMULAS["gossamer_test_counting::twice"]
    with pytest.raises(ValueError, match="namespace::operator"):
        register_macs("twice", lambda args, result: 0)


def test_set_attention_by_the_pairs_of_its_sets():
    groups = torch.tensor([0, 0, 0, 0, 0, 1, 1])
    (sets,) = balanced_sets(groups, torch.arange(7)[None], size=4)
    query, key, value = torch.randn(3, 2, 7, 8).unbind()
    pairs = 3 * 3 + 2 * 2 + 2 * 2  # five tokens in two sets, two in one
    assert count(lambda: set_attention(query, key, value, sets)) == 2 * pairs * 2 * 8
    leaves = [x.clone().requires_grad_() for x in (query, key, value)]
    output = set_attention(*leaves, sets)
    assert count(lambda: output.sum().backward()) == 2 * pairs * 5 * 8


def test_every_operator_of_ours_is_known():
    """A kernel that is added without a formula would be counted as nothing."""
    from gossamer.bench.counting import CHOOSING, REDUCING
    from gossamer.kernels.library import LIBRARY

    ours = {name.split(".")[0] for name in LIBRARY._op_defs}
    assert len(ours) >= 15
    assert not {name for name in ours if name not in {*FORMULAS, *CHOOSING, *REDUCING}}


@pytest.mark.parametrize(("forward", "dense", "every"), [(10, 5, 3), (-1, 5, 3), (1, 5, 0)])
def test_a_step_of_impossible_counts_is_refused(forward, dense, every):
    with pytest.raises(ValueError, match="expected every >= 1 and 0 <= forward <= dense"):
        training_step_macs(forward, dense, every=every)
