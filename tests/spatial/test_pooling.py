"""Attention pooling against one cell at a time."""

import pytest
import torch
from torch import nn

from gossamer.spatial import AttentionPool3d, Voxels, pooling_cells

SHAPE, STRIDE = (6, 5, 8), (2, 1, 4)


def scene(count: int = 70, seed: int = 0) -> Voxels:
    generator = torch.Generator().manual_seed(seed)
    cells = torch.randperm(2 * 6 * 5 * 8, generator=generator)[:count]
    coords = torch.stack([cells // 240, cells // 30 % 8, cells // 6 % 5, cells % 6], 1)
    return Voxels(torch.randn(count, 16, generator=generator), coords, SHAPE, 2)


def test_cells_hold_their_voxels_in_their_places():
    voxels = scene()
    cells = pooling_cells(voxels.coords, SHAPE, STRIDE)
    assert cells.shape == (3, 5, 2) and int(cells.occupied.sum()) == 70
    for row, cell in enumerate(cells.coords.tolist()):
        for place in cells.occupied[row].nonzero()[:, 0].tolist():
            scene_, z, y, x = voxels.coords[cells.members[row, place]].tolist()
            assert [scene_, z // 4, y, x // 2] == cell
            assert place == z % 4 * 2 + x % 2


@pytest.mark.parametrize("mask_empty", [True, False])
def test_pooling_is_attention_of_one_query(mask_empty):
    torch.manual_seed(0)
    pool = AttentionPool3d(16, STRIDE, heads=4, mask_empty=mask_empty)
    nn.init.normal_(pool.place)
    attention = nn.MultiheadAttention(16, 4, batch_first=True)
    parts = pool.query, pool.key, pool.value
    attention.load_state_dict(
        {
            "in_proj_weight": torch.cat([part.weight for part in parts]),
            "in_proj_bias": torch.cat([part.bias for part in parts]),
            "out_proj.weight": pool.project.weight,
            "out_proj.bias": pool.project.bias,
        }
    )
    voxels = scene()
    found = pool(voxels)
    cells = pooling_cells(voxels.coords, SHAPE, STRIDE)
    assert found.shape == cells.shape and torch.equal(found.coords, cells.coords)
    for row in range(len(cells.coords)):
        there = cells.occupied[row]
        held = torch.zeros(8, 16)
        held[there] = voxels.features[cells.members[row, there]]
        seen = there if mask_empty else torch.ones(8, dtype=torch.bool)
        query = held[seen].amax(0)[None]
        attended = attention(query, (held + pool.place)[seen], held[seen])[0]
        torch.testing.assert_close(found.features[row], pool.norm(query + attended)[0])


def test_bad_sizes_are_named():
    with pytest.raises(ValueError, match="heads to divide 10 channels, got 8"):
        AttentionPool3d(10, (1, 1, 2))
    with pytest.raises(ValueError, match="stride to be three integers >= 1"):
        pooling_cells(scene().coords, SHAPE, (1, 0, 1))
