"""OpenPCDet's dictionary of a batch, in front of and behind a voxel transformer."""

from typing import Any

from torch import nn

from gossamer.spatial import DSVT, DSVTConfig, Voxels


class DSVTBackbone(nn.Module):
    """A DSVT that takes and returns OpenPCDet's dictionary, in place of its 3-D backbone.

    Parameters
    ----------
    config : DSVTConfig, optional
        Default: DSVT-Pillar.

    Examples
    --------
    >>> import torch
    >>> backbone = DSVTBackbone(DSVTConfig((8, 8, 1), channels=8, heads=2, hidden=8)).eval()
    >>> batch = {
    ...     "batch_size": 1,
    ...     "voxel_features": torch.randn(2, 8),
    ...     "voxel_coords": torch.tensor([[0, 0, 1, 2], [0, 0, 3, 4]], dtype=torch.int32),
    ... }
    >>> backbone(batch)["pillar_features"].shape
    torch.Size([2, 8])
    """

    def __init__(self, config: DSVTConfig | None = None) -> None:
        super().__init__()
        self.dsvt = DSVT(config)

    def forward(self, batch_dict: dict[str, Any]) -> dict[str, Any]:
        """Read voxel_features and voxel_coords; write them, and pillar_features, anew.

        Raises
        ------
        KeyError
            If an entry is missing.
        ValueError
            If the voxels do not fit the configuration.
        """
        coords = batch_dict["voxel_coords"]
        voxels = Voxels(
            batch_dict["voxel_features"],
            coords.long(),
            self.dsvt.config.shape,
            int(batch_dict["batch_size"]),
        )
        found = self.dsvt(voxels)
        batch_dict["pillar_features"] = batch_dict["voxel_features"] = found.features
        batch_dict["voxel_coords"] = found.coords.to(coords.dtype)
        return batch_dict
