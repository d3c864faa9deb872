"""Forward and gradients of a sparse linear layer, against the dense layer in float64."""

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from gossamer.errors import BackendError
from gossamer.kernels import (
    SparsePattern,
    SparseWeight,
    backend,
    instruction_sets,
    sparse_linear,
)
from gossamer.kernels.backend import Impl
from gossamer.testing import random_mask

pytestmark = pytest.mark.usefixtures("nan_memory")
BATCHES = [1, 15, 16, 17, 49, 128, 129, 300]
MASKS = ["random", "empty rows", "empty columns", "all zero", "all dense"]
cases = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make_mask(kind: str, rows: int, columns: int, density: float = 0.2) -> Tensor:
    mask = random_mask((rows, columns), density=density, seed=rows)
    if kind == "empty rows":
        mask[::3] = False
    elif kind == "empty columns":
        mask[:, ::2] = False
    elif kind == "all zero":
        mask[:] = False
    elif kind == "all dense":
        mask[:] = True
    return mask


def gamma(terms: Tensor | int) -> Tensor | float:
    """The rigorous relative bound of a float32 sum of so many rounded products."""
    return terms * 2.0**-24 / (1 - terms * 2.0**-24)


def assert_within(found: Tensor, exact: Tensor, bound: Tensor, name: str) -> None:
    assert found.shape == exact.shape
    error = (found.double() - exact).abs()
    assert bool((error <= bound).all()), f"{name}: off by {float((error - bound).max()):.3g}"


def check_step(
    x: Tensor, dense: Tensor, mask: Tensor, bias: Tensor | None, grad: Tensor, impl: Impl
) -> SparseWeight:
    """Run forward and backward and hold each result to its componentwise bound."""
    weight = SparseWeight.from_dense(dense, mask)
    values = weight.values.requires_grad_()
    x = x.detach().requires_grad_()
    bias = None if bias is None else bias.detach().requires_grad_()
    output = sparse_linear(x, weight, bias, impl=impl)
    output.backward(grad)
    w, wide, g = (dense * mask).double(), x.detach().double(), grad.double()
    nnz = mask.sum(1)
    exact = wide @ w.T
    sizes = wide.abs() @ w.abs().T
    if bias is not None:
        exact, sizes = exact + bias.detach().double(), sizes + bias.detach().double().abs()
        assert bias.grad is not None
        flat = grad.reshape(-1, len(mask)).double()
        assert_within(bias.grad, flat.sum(0), gamma(len(flat) + 2) * flat.abs().sum(0), "bias")
    assert_within(output.detach(), exact, gamma(nnz + 3) * sizes, "output")
    assert x.grad is not None and values.grad is not None
    assert_within(x.grad, g @ w, gamma(mask.sum(0) + 2) * (g.abs() @ w.abs()), "input gradient")
    wide, g = wide.reshape(-1, mask.shape[1]), g.reshape(-1, mask.shape[0])
    products, bound = g.T @ wide, gamma(len(g) + 2) * (g.T.abs() @ wide.abs())
    assert_within(values.grad, products[mask], bound[mask], "value gradient")
    return weight


@pytest.mark.parametrize("batch", BATCHES)
def test_a_training_step_is_exact_to_rounding(impl, batch):
    rows, columns = 70, 133
    mask = make_mask("random", rows, columns)
    args = draw(batch, columns), draw(rows, columns, seed=1), mask, draw(rows, seed=2)
    check_step(*args, draw(batch, rows, seed=3), impl)


@pytest.mark.parametrize("kind", MASKS)
def test_patterns_at_the_edges(impl, kind):
    mask = make_mask(kind, 65, 80)
    x, grad = draw(33, 80), draw(33, 65, seed=3)
    weight = check_step(x, draw(65, 80, seed=1), mask, draw(65, seed=2), grad, impl)
    empty = ~mask.any(1)
    output = sparse_linear(x, SparseWeight(weight.values.detach(), weight.pattern), impl=impl)
    assert torch.equal(output[:, empty], torch.zeros(33, int(empty.sum())))


@cases
@given(st.integers(0, 40), st.integers(1, 90), st.integers(1, 90), st.floats(0, 1), st.booleans())
def test_any_shape(impl, batch, rows, columns, density, biased):
    mask = make_mask("random", rows, columns, density)
    bias = draw(rows, seed=2) if biased else None
    args = draw(batch, columns), draw(rows, columns, seed=1), mask, bias
    check_step(*args, draw(batch, rows, seed=3), impl)


def test_rows_longer_than_a_panel_of_the_input(impl):
    """More columns than fit one panel: sums go on from panel to panel, in the same order."""
    columns = 5000
    mask = make_mask("random", 20, columns, 0.02)
    mask[3] = True
    check_step(
        draw(130, columns), draw(20, columns, seed=1), mask, None, draw(130, 20, seed=3), impl
    )


LAYOUTS = {
    "leading dimensions": lambda x: x.reshape(3, 2, -1, x.shape[-1]),
    "positions contiguous": lambda x: x.reshape(6, -1, x.shape[-1]).mT.contiguous().mT,
    "features strided": lambda x: torch.stack([x, x], -1)[..., 0],
    "transposed": lambda x: x.T.contiguous().T,
    "one vector": lambda x: x[0],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_gives_the_same_bits(impl, layout):
    weight = SparseWeight.from_dense(draw(50, 40, seed=1), make_mask("random", 50, 40))
    arrange = LAYOUTS[layout]
    x, grad = draw(42, 40), draw(42, 50, seed=2)
    parts = []
    for arranged in (lambda x: x[:1] if layout == "one vector" else x, arrange):
        source = arranged(x).detach().requires_grad_()
        values = weight.values.detach().requires_grad_()
        output = sparse_linear(source, SparseWeight(values, weight.pattern), impl=impl)
        gradients = torch.autograd.grad(output, (source, values), arranged(grad))
        parts.append([output.detach(), *gradients])
    plain, other = parts
    assert torch.equal(other[0].reshape(plain[0].shape), plain[0])
    assert torch.equal(other[1].reshape(plain[1].shape), plain[1])
    if impl == "reference":
        torch.testing.assert_close(other[2], plain[2])
    else:
        assert torch.equal(other[2], plain[2])


def test_positions_contiguous_input_makes_such_an_output():
    weight = SparseWeight.from_dense(draw(5, 4))
    output = sparse_linear(draw(2, 4, 9).mT, weight)
    assert output.shape == (2, 9, 5) and output.mT.is_contiguous()


def test_threads_runs_and_batches_agree_bitwise(isa):
    mask = make_mask("random", 200, 150)
    weight = SparseWeight.from_dense(draw(200, 150, seed=1), mask)
    x, grad = draw(150, 150), draw(150, 200, seed=2)

    def step(rows: slice = slice(None)) -> list[Tensor]:
        source, values = x[rows].requires_grad_(), weight.values.detach().requires_grad_()
        output = sparse_linear(source, SparseWeight(values, weight.pattern), impl="cpu")
        return [output.detach(), *torch.autograd.grad(output, (source, values), grad[rows])]

    expected = step()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        assert all(map(torch.equal, step(), expected))
    for row in (0, 97, 149):
        output, dense, _ = step(slice(row, row + 1))
        assert torch.equal(output[0], expected[0][row])
        assert torch.equal(dense[0], expected[1][row])


@pytest.mark.parametrize("needs", [(True, False), (False, True), (False, False)])
def test_gradients_that_are_not_needed(impl, needs):
    mask = make_mask("random", 30, 20)
    weight = SparseWeight.from_dense(draw(30, 20, seed=1), mask)
    x, values = draw(17, 20).requires_grad_(needs[0]), weight.values.requires_grad_(needs[1])
    bias, grad = torch.zeros(30, requires_grad=True), draw(17, 30, seed=2)
    sparse_linear(x, weight, bias, impl=impl).backward(grad)
    assert (x.grad is not None, values.grad is not None) == needs
    if needs[0]:
        torch.testing.assert_close(x.grad, grad @ weight.to_dense().detach())
    if needs[1]:
        torch.testing.assert_close(values.grad, (grad.T @ x.detach())[mask])
    assert bias.grad is not None


def test_gradients_equal_numerical_ones():
    mask = make_mask("random", 5, 7, 0.4)
    pattern = SparsePattern.from_mask(mask)
    arguments = [draw(3, 7), draw(pattern.nnz, seed=1), draw(5, seed=2)]
    arguments = [t.double().requires_grad_() for t in arguments]

    def layer(x: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        return sparse_linear(x, SparseWeight(values, pattern), bias)

    assert torch.autograd.gradcheck(layer, arguments)


def test_a_second_derivative_is_refused():
    weight = SparseWeight.from_dense(draw(4, 3))
    x = draw(2, 3).requires_grad_()
    (grad,) = torch.autograd.grad(sparse_linear(x, weight).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("impl_name", ["reference", "cpu"] if instruction_sets() else ["reference"])
def test_nothing_of_the_dense_size_is_made(impl_name):
    rows, columns = 400, 500
    weight = SparseWeight.from_dense(draw(rows, columns), make_mask("random", rows, columns, 0.05))
    values, x = weight.values.requires_grad_(), draw(3, columns).requires_grad_()
    optimizer = torch.optim.Adam([values, x])
    with torch.profiler.profile(profile_memory=True) as profile:
        for _ in range(2):
            sparse_linear(x, weight, impl=impl_name).square().sum().backward()
            optimizer.step()
    profiler: Any = profile.profiler  # optional, and its stub lacks the events' sizes
    events = profiler.kineto_results.events()
    largest = max(event.nbytes() for event in events if event.name() == "[memory]")
    assert 4 * weight.pattern.nnz <= largest < 0.35 * 4 * rows * columns


def test_guard_values_around_outputs_stay():
    """The kernels write what they are asked for and nothing beside it."""
    if not instruction_sets():
        pytest.skip("needs the native kernels")
    weight = SparseWeight.from_dense(draw(37, 53, seed=1), make_mask("random", 37, 53))
    pattern, columns = weight.pattern, weight.pattern.columns
    guarded = torch.full((3, 23, 41), -7.0)
    x, grad, output = draw(1, 19, 53), draw(1, 19, 37), guarded[1:2, 1:20, 2:39]
    rows = pattern.offsets, pattern.indices
    backend.launch("sparse_linear", x, *rows, None, weight.values, None, output, None, None, 2)
    outside = torch.ones_like(guarded, dtype=torch.bool)
    outside[1:2, 1:20, 2:39] = False
    assert bool((guarded[outside] == -7.0).all()) and bool((output != -7.0).all())
    dots = torch.full((pattern.nnz + 2,), -7.0)
    dense, parts = torch.empty(1, 19, 53), (*columns, weight.values, None)
    backend.launch("sparse_linear", grad, *parts, dense, x, dots[1:-1], 2)
    assert dots[0] == dots[-1] == -7.0 and bool((dots[1:-1] != -7.0).all())


@pytest.mark.parametrize("positions_first", [False, True])
@pytest.mark.parametrize(("rows", "columns", "batch"), [(37, 53, 19), (1, 1, 1), (16, 70, 131)])
def test_nothing_around_the_tensors_is_touched(isa, guarded, positions_first, rows, columns, batch):
    def laid_out(x: Tensor) -> Tensor:
        return guarded(x.T.contiguous().T[None] if positions_first else x[None])

    mask = make_mask("random", rows, columns)
    mask[0, -1] = True
    weight = SparseWeight.from_dense(draw(rows, columns, seed=1), mask)
    pattern, dense = weight.pattern, weight.to_dense()
    values, bias = guarded(weight.values), guarded(draw(rows, seed=2))
    by_row = guarded(pattern.offsets), guarded(pattern.indices)
    by_column = [guarded(part) for part in pattern.columns]
    x, grad = laid_out(draw(batch, columns)), laid_out(draw(batch, rows, seed=3))
    output, x_grad = (laid_out(torch.full_like(like[0], torch.nan)) for like in (grad, x))
    dots = guarded(torch.full((pattern.nnz,), torch.nan))
    backend.launch("sparse_linear", x, *by_row, None, values, bias, output, None, None, 1)
    backend.launch("sparse_linear", grad, *by_column, values, None, x_grad, x, dots, 1)
    torch.testing.assert_close(output, x @ dense.T + bias)
    torch.testing.assert_close(x_grad, grad @ dense)
    torch.testing.assert_close(dots, (grad[0].T @ x[0])[mask])


@pytest.mark.parametrize("positions_first", [False, True])
def test_offsets_beyond_32_bits(isa, address_space, positions_first):
    stride, skip = 2**30 + 7, 2**31 + 5
    mask = make_mask("random", 5, 6, 0.6)
    weight = SparseWeight.from_dense(draw(5, 6), mask)
    pattern, columns = weight.pattern, weight.pattern.columns

    def spread(x: Tensor) -> Tensor:
        room = address_space(6 * stride, torch.float32)
        return room.as_strided(x.shape, (0, 1, stride) if positions_first else (0, stride, 1))

    def far(x: Tensor) -> Tensor:
        room = address_space(skip + len(x), x.dtype)
        room[skip:] = x
        return room

    x, grad = spread(draw(1, 4, 6)).copy_(draw(1, 4, 6)), spread(draw(1, 4, 5))
    output, x_grad, values = spread(grad), spread(x), far(weight.values)
    rows = pattern.offsets + skip, far(pattern.indices)
    backend.launch("sparse_linear", x, *rows, None, values, None, output, None, None, 1)
    torch.testing.assert_close(output, x @ weight.to_dense().T)
    grad.copy_(draw(1, 4, 5, seed=1))
    parts = columns.offsets + skip, far(columns.indices), far(columns.order)
    dots = torch.zeros(pattern.nnz)
    backend.launch("sparse_linear", grad, *parts, weight.values, None, x_grad, x, dots, 1)
    torch.testing.assert_close(x_grad, grad @ weight.to_dense())
    torch.testing.assert_close(dots, (grad[0].T @ x[0])[mask])


@pytest.mark.parametrize("impl_name", ["reference", "cpu"] if instruction_sets() else ["reference"])
@pytest.mark.parametrize("transposed", [False, True])
def test_operators_are_registered_for_tracing(impl_name, transposed):
    weight = SparseWeight.from_dense(draw(6, 5), make_mask("random", 6, 5, 0.5))
    pattern, columns = weight.pattern, weight.pattern.columns
    x = (draw(2, 5, 7).mT if transposed else draw(1, 14, 5)).requires_grad_()
    grad = draw(2, 6, 7, seed=1).mT if transposed else draw(1, 14, 6)
    values = weight.values.requires_grad_()
    rows = pattern.offsets, pattern.indices
    forward = (x, values, draw(6).requires_grad_(), *rows, *columns, impl_name)
    torch.library.opcheck(torch.ops.gossamer.sparse_linear.default, forward)
    torch.library.opcheck(
        torch.ops.gossamer.sparse_linear_backward.default,
        (grad, x.detach(), values.detach(), *columns, impl_name),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )


@pytest.mark.filterwarnings("ignore:Sparse")
def test_a_torch_csr_matrix_is_a_weight(impl):
    mask = make_mask("random", 6, 5, 0.5)
    dense = draw(6, 5) * mask
    rows = torch.cat([torch.zeros(1).long(), mask.sum(1).cumsum(0)])
    csr = torch.sparse_csr_tensor(rows, mask.nonzero()[:, 1], dense[mask], (6, 5))
    x = draw(3, 5, seed=1)
    torch.testing.assert_close(sparse_linear(x, csr, impl=impl), x @ dense.T)


GOOD_WEIGHT = SparseWeight.from_dense(torch.ones(4, 3))
SPARSE_LINEAR: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"input": torch.ones(2, 4)}, ValueError, r"input of \[..., 3\], got \[2, 4\]"),
    ({"input": torch.tensor(1.0)}, ValueError, r"input of \[..., 3\], got \[\]"),
    ({"input": torch.ones(2, 3).bfloat16()}, TypeError, r"input to be torch.float32.*bfloat16"),
    ({"input": torch.ones(2, 3, device="meta")}, ValueError, r"one device, got input on meta"),
    ({"bias": torch.ones(3)}, ValueError, r"bias of \[4\], got \[3\]"),
    ({"bias": torch.ones(4).double()}, TypeError, r"bias to be torch.float32.*float64"),
    ({"weight": torch.ones(4, 3)}, TypeError, r"torch.sparse_csr matrix, got torch.strided"),
    ({"weight": [1]}, TypeError, r"SparseWeight or a torch.sparse_csr tensor, got list"),
    ({"impl": "triton"}, ValueError, r"auto, reference, cpu, got 'triton'"),
]


@pytest.mark.parametrize("row", SPARSE_LINEAR, ids=lambda row: "-".join(row[0]))
def test_bad_input_is_named(row):
    changes, error, message = row
    with pytest.raises(error, match=message):
        sparse_linear(**({"input": torch.ones(2, 3), "weight": GOOD_WEIGHT} | changes))


def test_double_precision_has_no_native_kernel():
    weight = SparseWeight.from_dense(torch.ones(4, 3).double())
    with pytest.raises(TypeError, match="float32 for impl='cpu', got float64"):
        sparse_linear(torch.ones(2, 3).double(), weight, impl="cpu")


def test_a_missing_native_module_is_named(monkeypatch):
    monkeypatch.setattr(backend, "native", lambda: None)
    with pytest.raises(BackendError, match="impl='cpu' was not built"):
        sparse_linear(torch.ones(2, 3), GOOD_WEIGHT, impl="cpu")
