"""SR-STE against gradients derived by hand, and N:M masks against a loop."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from gossamer.patterns import NM
from gossamer.training import SRSTE, attach, nm_mask


def loop_mask(row, n, m):
    """Sort every group in Python: by size, then by place."""
    kept = [False] * len(row)
    for start in range(0, len(row), m):
        order = sorted(range(start, start + m), key=lambda i: (-abs(row[i]), i))
        for i in order[:n]:
            kept[i] = True
    return kept


@given(data=st.data())
def test_mask_is_the_loop_s_ties_and_all(data):
    m = data.draw(st.sampled_from([1, 2, 4, 8, 9, 16]))
    n = data.draw(st.integers(1, m))
    values = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, 1e-30])
    row = data.draw(st.lists(values, min_size=2 * m, max_size=2 * m))
    assert nm_mask(torch.tensor([row]), n, m)[0].tolist() == loop_mask(row, n, m)


def test_groups_lie_along_the_inputs_of_a_convolution():
    weight = torch.randn(3, 8, 2, 5, generator=torch.Generator().manual_seed(0))
    mask = nm_mask(weight, 1, 4)
    for out in range(3):
        for y in range(2):
            for x in range(5):
                expected = loop_mask(weight[out, :, y, x].tolist(), 1, 4)
                assert mask[out, :, y, x].tolist() == expected


@pytest.mark.parametrize(
    ("weight", "n", "m", "error", "message"),
    [
        (torch.ones(2, 8), 0, 4, ValueError, "1 <= n <= m"),
        (torch.ones(2, 8), 5, 4, ValueError, "1 <= n <= m"),
        (torch.ones(2, 6), 2, 4, ValueError, r"4 divides in dim 1, got \[2, 6\]"),
        (torch.ones(8), 2, 4, ValueError, r"dim 1, got \[8\]"),
        (torch.ones(2, 8).int(), 2, 4, TypeError, "floating-point weights, got torch.int32"),
    ],
)
def test_mask_refuses(weight, n, m, error, message):
    with pytest.raises(error, match=message):
        nm_mask(weight, n, m)


def quadratic(method, *, lr=0.5, steps=1, optimizer=torch.optim.SGD, **options):
    """One linear layer under the loss sum(c * output), whose gradient is c x^T by hand."""
    torch.manual_seed(0)
    layer = nn.Linear(8, 3, bias=False, dtype=torch.float64)
    weight = layer.weight.detach().clone()
    x, c = torch.randn(5, 8).double(), torch.randn(5, 3).double()
    optim = optimizer(layer.parameters(), lr=lr, **options)
    attachment = attach(layer, optim, method)
    for _ in range(steps):
        optim.zero_grad()
        (layer(x) * c).sum().backward()
        optim.step()
    after = layer.parametrizations.weight.original.detach()
    return weight, c.T @ x, after, attachment, layer


@pytest.mark.parametrize("decay", [2e-4, 0.3, 0.0, -0.1])
def test_a_step_is_the_paper_s_equation(decay):
    """W <- W - lr (g + decay (1 - E) W), with g at all entries: pruned ones learn."""
    weight, g, after, _, _ = quadratic(SRSTE(2, 4, decay=decay))
    dropped = ~nm_mask(weight, 2, 4)
    expected = weight - 0.5 * (g + decay * (dropped * weight))
    torch.testing.assert_close(after, expected, rtol=1e-14, atol=1e-14)
    assert bool((after != weight)[dropped].all())


def test_the_pull_enters_the_momentum():
    weight, g, after, _, _ = quadratic(SRSTE(2, 4, decay=0.3), steps=2, lr=0.1, momentum=0.9)
    buffer, w = torch.zeros_like(weight), weight
    for _ in range(2):
        buffer = 0.9 * buffer + g + 0.3 * (~nm_mask(w, 2, 4) * w)
        w = w - 0.1 * buffer
    torch.testing.assert_close(after, w, rtol=1e-13, atol=1e-13)


def test_the_pull_beside_adam_leaves_its_moments_alone():
    options = {"optimizer": torch.optim.Adam, "lr": 0.01}
    weight, _, after, _, _ = quadratic(SRSTE(2, 4, decay=0.3, decay_in="weight"), **options)
    _, _, plain, _, _ = quadratic(SRSTE(2, 4, decay=0.0), **options)
    dropped = ~nm_mask(weight, 2, 4)
    torch.testing.assert_close(plain - after, 0.01 * 0.3 * (dropped * weight), rtol=0, atol=1e-15)


def test_batches_accumulated_are_pulled_once():
    method = SRSTE(2, 4, decay=0.3)
    weight, g, *_ = quadratic(method, steps=0)
    _, _, _, attachment, layer = quadratic(method, steps=0)
    torch.manual_seed(0)
    nn.Linear(8, 3, bias=False, dtype=torch.float64)
    x, c = torch.randn(5, 8).double(), torch.randn(5, 3).double()
    for row in range(5):
        (layer(x[row]) * c[row]).sum().backward()
    attachment.optimizer.step()
    expected = weight - 0.5 * (g + 0.3 * (~nm_mask(weight, 2, 4) * weight))
    torch.testing.assert_close(layer.parametrizations.weight.original.detach(), expected)


def test_masks_are_of_the_weight_as_it_is():
    """Every forward pass decides anew, and what is dropped is exactly zero."""
    _, _, _, attachment, layer = quadratic(SRSTE(1, 4))
    with torch.no_grad():
        layer.parametrizations.weight.original.copy_(torch.randn(3, 8))
    dense = layer.parametrizations.weight.original
    mask = nm_mask(dense, 1, 4)
    assert torch.equal(layer.weight, dense * mask) and torch.equal(attachment.masks()[""], mask)
    attachment.detach()
    assert type(layer) is nn.Linear and torch.equal(layer.weight, dense * mask)
    NM(1, 4).from_mask(layer.weight != 0)


def test_dropped_weights_come_back():
    *_, attachment, _ = quadratic(SRSTE(2, 4), lr=5.0, steps=0)
    first = attachment.masks()[""]
    *_, moved, _ = quadratic(SRSTE(2, 4), lr=5.0, steps=3)
    assert bool((moved.masks()[""] & ~first).any())


def test_compiles():
    _, _, _, _, layer = quadratic(SRSTE(2, 4))
    x = torch.randn(4, 8).double()
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), layer(x))
