"""ONNX files of voxel transformers, in standard operators, for any number of voxels and sets."""

from pathlib import Path

import torch
from torch import Tensor, nn

from gossamer.adapters.onnx import export_onnx
from gossamer.patterns import TokenSets
from gossamer.spatial import DSVT, PoolingCells, RotatedSets, StagePlan, Voxels


def export_voxels(model: DSVT, voxels: Voxels, path: Path | str) -> None:
    """Write a DSVT backbone as ONNX: gather, products, softmax and scatter, no custom operator.

    What depends on coordinates alone stays outside, where it is sorting in integers: the file
    takes the tensors of `voxel_inputs`, in that order, and returns the features of the last stage.

    Parameters
    ----------
    model : DSVT
        Exported in evaluation mode.
    voxels : Voxels
        An example; numbers of voxels, sets and cells may differ later.
    path : Path or str
        Replaced in one step.

    Raises
    ------
    ImportError, OSError, torch.onnx.OnnxExporterError
        As `export_onnx` does.
    """
    inputs = voxel_inputs(model, voxels)
    rows = tuple({0: torch.export.Dim.DYNAMIC} for _ in inputs)
    export_onnx(_Encoder(model), inputs, path, dynamic_shapes=(rows,))


def voxel_inputs(model: DSVT, voxels: Voxels) -> tuple[Tensor, ...]:
    """Return what an exported backbone reads of these voxels.

    Features, then for each stage: indices and repeats of the sets (along y and along x, of the
    windows and of the larger, shifted ones), places in both windows, and members and occupancy of
    the pooling cells where the stage has any.

    Examples
    --------
    >>> from gossamer.spatial import DSVTConfig
    >>> model = DSVT(DSVTConfig(shape=(8, 8, 1), channels=8, heads=2, hidden=8))
    >>> cells = Voxels(torch.zeros(1, 8), torch.zeros(1, 4, dtype=torch.int64), (8, 8, 1))
    >>> len(voxel_inputs(model, cells))
    11
    """
    parts: list[Tensor] = [voxels.features]
    for plan in model.plan(voxels):
        for rotated in plan.sets:
            for sets in (rotated.y_major, rotated.x_major):
                parts += [sets.indices, sets.repeated]
        parts += plan.offsets
        if plan.cells is not None:
            parts += [plan.cells.members, plan.cells.occupied]
    return tuple(parts)


class _Encoder(nn.Module):
    """`DSVT.encode` of plain tensors."""

    def __init__(self, model: DSVT) -> None:
        super().__init__()
        self.model = model

    def forward(self, *parts: Tensor) -> Tensor:
        features, *rest = parts
        count, queue = features.shape[0], iter(rest)

        def rotated() -> RotatedSets:
            y_major = TokenSets(next(queue), next(queue), count)
            return RotatedSets(y_major, TokenSets(next(queue), next(queue), count))

        plans: list[StagePlan] = []
        for stage in self.model.config.stages:
            sets, offsets, cells = (rotated(), rotated()), (next(queue), next(queue)), None
            if stage.pool is not None:
                members, occupied = next(queue), next(queue)
                cells = PoolingCells(members[:, :1], members, occupied, self.model.config.shape)
                count = members.shape[0]
            plans.append(StagePlan(sets, offsets, cells))
        return self.model.encode(features, tuple(plans))
