"""Rotary position encoding: complex products in every layout, and what it must not touch."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from gossamer.kernels import instruction_sets, rotate
from gossamer.testing import check_close, rotary_tables

pytestmark = pytest.mark.usefixtures("nan_memory")
IMPLS = ["reference", "cpu"] if instruction_sets() else ["reference"]
DTYPES = [torch.float32, torch.bfloat16]


def product(vectors: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Complex products in float64."""
    first, second = vectors.double().chunk(2, -1)
    turned = torch.complex(first, second) * torch.complex(cosine.double(), sine.double())
    return torch.cat([turned.real, turned.imag], -1)


def rounding(vectors: Tensor) -> float:
    """Two products and a sum in float32, and what storing the result rounds."""
    size = 2 * float(vectors.double().abs().max()) if vectors.numel() else 0.0
    return size * (3 * 2.0**-24 + (2.0**-9 if vectors.dtype is torch.bfloat16 else 0.0))


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(st.integers(0, 7), max_size=3),
    st.sampled_from([2, 6, 32, 64, 80, 130]),
    st.sampled_from(DTYPES),
    st.data(),
)
def test_is_a_complex_product(impl, shape, dim, dtype, data):
    vectors = torch.randn(*shape, dim).to(dtype)
    kept = [data.draw(st.sampled_from([size, 1])) for size in shape]  # 1: broadcast
    kept = kept[data.draw(st.integers(0, len(kept))) :]
    angle = torch.randn(*kept, dim // 2)
    found = rotate(vectors, angle.cos(), angle.sin(), impl=impl)
    assert found.shape == vectors.shape and found.dtype == dtype
    check_close(found, product(vectors, angle.cos(), angle.sin()), rounding(vectors), "vectors")


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_instruction_set_with_many_threads(isa, dtype):
    vectors = torch.randn(2, 3, 700, 72).to(dtype)
    cosine, sine = rotary_tables(700, 72)
    found = rotate(vectors, cosine, sine, impl="cpu")
    check_close(found, product(vectors, cosine, sine), rounding(vectors), isa)


def test_touches_nothing_else(isa, guarded):
    vectors = torch.randn(2, 3, 5, 72)
    cosine, sine = rotary_tables(5, 72)
    apart = guarded(vectors), guarded(cosine), guarded(sine)
    assert torch.equal(rotate(*apart), rotate(vectors, cosine, sine))
    assert torch.equal(apart[0], vectors)


def test_reads_any_strides(impl):
    vectors = torch.randn(3, 9, 4, 16).transpose(1, 2)
    cosine, sine = rotary_tables(9, 16)
    exact = product(vectors, cosine, sine)
    check_close(rotate(vectors, cosine, sine, impl=impl), exact, rounding(vectors), "a view")
    every_other = torch.randn(9, 32)[:, ::2]
    found = rotate(every_other, cosine, sine, impl=impl)
    check_close(found, product(every_other, cosine, sine), rounding(every_other), "gaps")
    found = rotate(every_other, cosine[:, :1], sine[:, :1], impl=impl)
    exact = product(every_other, cosine[:, :1], sine[:, :1])
    check_close(found, exact, rounding(every_other), "one angle a vector")


def test_is_the_encoding_of_transformers(impl):
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    vectors = torch.randn(2, 3, 40, 16)
    cosine, sine = rotary_tables(40, 16)
    cos, sin = (torch.cat([table, table], -1)[None] for table in (cosine, sine))
    expected, _ = apply_rotary_pos_emb(vectors, vectors, cos, sin)
    torch.testing.assert_close(rotate(vectors, cosine, sine, impl=impl), expected)


def test_products_depend_on_the_distance_alone(impl):
    cosine, sine = rotary_tables(50, 16)
    query, key = torch.randn(2, 16)

    def apart(first: int, second: int) -> Tensor:
        turned = rotate(query, cosine[first], sine[first], impl=impl)
        return turned @ rotate(key, cosine[second], sine[second], impl=impl)

    torch.testing.assert_close(apart(7, 3), apart(47, 43), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_in_its_vector(impl, value):
    vectors = torch.randn(4, 16)
    vectors[2, 3] = value
    found = rotate(vectors, *rotary_tables(4, 16), impl=impl)
    broken = ~found.isfinite()
    assert broken[2].nonzero().flatten().tolist() == [3, 11] and int(broken.sum()) == 2


@pytest.mark.parametrize(
    ("change", "error", "named"),
    [
        ({"vectors": torch.randn(4, 8).double()}, TypeError, "float64"),
        ({"vectors": torch.randn(4, 7)}, ValueError, "even"),
        ({"vectors": torch.randn(1, 1, 1, 4, 8)}, ValueError, "one to four dims"),
        ({"vectors": torch.randn(4, 8, requires_grad=True)}, ValueError, "gradient"),
        ({"cosine": torch.randn(4, 4).double()}, TypeError, "cosine to be float32"),
        ({"sine": torch.randn(4, 8)}, ValueError, "sine to broadcast"),
        ({"sine": torch.randn(3, 4)}, ValueError, "sine to broadcast"),
        ({"impl": "triton"}, ValueError, "impl"),
    ],
)
def test_refuses_what_does_not_fit(change, error, named):
    given = {"vectors": torch.randn(4, 8), "cosine": torch.randn(4, 4), "sine": torch.randn(4, 4)}
    with pytest.raises(error, match=named):
        rotate(**(given | change))


def test_traces():
    compiled = torch.compile(rotate, fullgraph=True, backend="eager")
    vectors, tables = torch.randn(3, 4, 8), rotary_tables(4, 8)
    assert torch.equal(compiled(vectors, *tables), rotate(vectors, *tables))
