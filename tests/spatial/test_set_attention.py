"""Layers and blocks against PyTorch's own multi-head attention."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.patterns import TokenSets
from gossamer.spatial import DSVTBlock, RotatedSets, SetAttention

SETS = TokenSets.from_lists([[4, 0, 2], [1, 3, 5, 7, 8], [6]], size=5)
OTHER = TokenSets.from_lists([[8, 7, 6], [5, 4, 3], [2, 1, 0]], size=5)


def oracle(layer: SetAttention, x: Tensor, position: Tensor, sets: TokenSets) -> Tensor:
    """The published way: every slot through nn.MultiheadAttention, with a key padding mask."""
    channels = x.shape[1]
    attention = nn.MultiheadAttention(channels, layer.heads, batch_first=True).double()
    attention.load_state_dict(
        {
            "in_proj_weight": torch.cat([layer.query_key.weight, layer.value.weight]),
            "in_proj_bias": torch.cat([layer.query_key.bias, layer.value.bias]),
            "out_proj.weight": layer.project.weight,
            "out_proj.bias": layer.project.bias,
        }
    )
    held, placed = x[sets.indices], (x + position)[sets.indices]
    attended = attention(placed, placed, held, key_padding_mask=sets.repeated)[0]
    scattered = torch.zeros_like(x)
    for row in range(len(sets.indices)):  # the first occurrence counts
        for slot in range(sets.indices.shape[1]):
            if not sets.repeated[row, slot]:
                scattered[sets.indices[row, slot]] = attended[row, slot]
    x = layer.norm_attention(x + scattered)
    return layer.norm_output(x + layer.contract(F.gelu(layer.expand(x))))


def make_layer() -> SetAttention:
    torch.manual_seed(0)
    layer = SetAttention(16, 4, 24)
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5)
    return layer


def test_a_layer_is_masked_multi_head_attention(impl):
    layer = make_layer()
    layer.impl = impl
    x, position = torch.randn(2, 9, 16)
    found = layer(x, position, SETS)
    exact = oracle(layer.double(), x.double(), position.double(), SETS)
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)


def test_values_carry_no_position():
    """With one voxel a set, attention returns the value, so that position does not matter."""
    layer = make_layer()
    alone = TokenSets.from_lists([[token] for token in range(9)], size=2)
    x, position = torch.randn(2, 9, 16)
    torch.testing.assert_close(layer(x, position, alone), layer(x, 0 * position, alone))
    assert not torch.allclose(layer(x, position, SETS), layer(x, 0 * position, SETS))


@pytest.mark.parametrize("orders", [("y", "x"), ("y", "y"), ("x", "y")])
def test_a_block_is_two_layers_with_residuals(orders):
    torch.manual_seed(0)
    block = DSVTBlock(16, 4, 24, orders=orders).eval()
    x, offsets = torch.randn(9, 16), torch.randn(2, 9, 2)
    found = block(x, RotatedSets(SETS, OTHER), offsets)
    for at, order in enumerate(orders):
        position = block.positions[at](offsets[at])
        layer = block.layers[at](x, position, SETS if order == "y" else OTHER)
        x = block.norms[at](x + layer)
    torch.testing.assert_close(found, x)


def test_rotation_lets_sets_mix():
    """What a voxel is reached by: its own set after one layer, both of them after two."""
    torch.manual_seed(0)
    offsets = torch.zeros(2, 9, 2)
    # Voxel 5 reads 3 and 4 in the second layer, which read their own sets in the first.
    for orders, reached in ((("y", "x"), {0, 1, 2, 3, 4, 5, 7, 8}), (("y", "y"), {1, 3, 5, 7, 8})):
        block = DSVTBlock(16, 4, 24, orders=orders).eval()
        x = torch.randn(9, 16, requires_grad=True)
        output = block(x, RotatedSets(SETS, OTHER), offsets)
        (grad,) = torch.autograd.grad(output[5].square().sum(), x)
        touched = grad.abs().sum(1) > 1e-9
        assert set(touched.nonzero()[:, 0].tolist()) == reached


def test_heads_must_divide_channels():
    with pytest.raises(ValueError, match="heads to divide 16 channels, got 3"):
        SetAttention(16, 3, 8)
