import pytest
import torch

from gossamer.attention.rotary import rotate, unrotate
from gossamer.testing import rotary_tables


def test_is_a_complex_product() -> None:
    vectors = torch.randn(2, 3, 40, 16)
    cosine, sine = rotary_tables(40, 16)
    first, second = vectors.double().chunk(2, -1)
    turned = torch.complex(first, second) * torch.complex(cosine.double(), sine.double())
    expected = torch.cat([turned.real, turned.imag], -1)
    torch.testing.assert_close(rotate(vectors, cosine, sine).double(), expected)


def test_is_the_encoding_of_transformers() -> None:
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    vectors = torch.randn(2, 3, 40, 16)
    cosine, sine = rotary_tables(40, 16)
    cos, sin = (torch.cat([table, table], -1)[None] for table in (cosine, sine))
    expected, _ = apply_rotary_pos_emb(vectors, vectors, cos, sin)
    torch.testing.assert_close(rotate(vectors, cosine, sine), expected)


@pytest.mark.parametrize("stretch", [1.0, 1.37, 0.5])
def test_unrotate_undoes_it_with_any_scaling(stretch: float) -> None:
    vectors = torch.randn(2, 3, 40, 16)
    cosine, sine = (stretch * table for table in rotary_tables(40, 16))
    torch.testing.assert_close(unrotate(rotate(vectors, cosine, sine), cosine, sine), vectors)
    turned = unrotate(vectors, cosine, sine)
    torch.testing.assert_close(rotate(turned, cosine, sine), vectors)


def test_products_depend_on_the_distance_alone() -> None:
    cosine, sine = rotary_tables(50, 16)
    query, key = torch.randn(2, 16)
    near = rotate(query, cosine[7], sine[7]) @ rotate(key, cosine[3], sine[3])
    far = rotate(query, cosine[47], sine[47]) @ rotate(key, cosine[43], sine[43])
    torch.testing.assert_close(near, far, atol=1e-5, rtol=1e-5)


def test_keeps_dtype_and_inputs() -> None:
    vectors = torch.randn(4, 8).bfloat16()
    before = vectors.clone()
    cosine, sine = rotary_tables(4, 8)
    turned = rotate(vectors, cosine, sine)
    assert turned.dtype == torch.bfloat16
    assert torch.equal(turned, rotate(vectors.float(), cosine, sine).bfloat16())
    assert torch.equal(vectors, before)
