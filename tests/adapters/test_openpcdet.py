"""The dictionary that OpenPCDet's modules pass on."""

import pytest
import torch

from gossamer.adapters.openpcdet import DSVTBackbone
from gossamer.spatial import DSVTConfig, Stage, Voxels

STAGES = (Stage((6, 6, 4), blocks=1, set_size=5, pool=(1, 1, 4)), Stage((6, 6, 1), 1, 5))
CONFIG = DSVTConfig((16, 16, 4), channels=8, heads=8, hidden=8, stages=STAGES)


def test_the_dictionary_holds_what_the_backbone_returns():
    torch.manual_seed(0)
    backbone = DSVTBackbone(CONFIG).eval()
    cells = torch.randperm(2 * 16 * 16 * 4)[:90]
    coords = torch.stack([cells // 1024, cells // 256 % 4, cells // 16 % 16, cells % 16], 1)
    features = torch.randn(90, 8)
    batch = {"batch_size": 2, "voxel_features": features, "voxel_coords": coords.int(), "x": 1}
    found = backbone(batch)
    expected = backbone.dsvt(Voxels(features, coords, CONFIG.shape, 2))
    assert found is batch and found["x"] == 1
    assert torch.equal(found["pillar_features"], expected.features)
    assert torch.equal(found["voxel_features"], expected.features)
    assert torch.equal(found["voxel_coords"], expected.coords.int())
    assert found["voxel_coords"].dtype == torch.int32


def test_a_missing_entry_is_named():
    with pytest.raises(KeyError, match="voxel_coords"):
        DSVTBackbone(CONFIG)({"voxel_features": torch.zeros(1, 8)})
