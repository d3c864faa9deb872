"""ONNX files of models whose sparse layers are dense with zeros."""

import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.adapters.dense_copy import dense_copy
from gossamer.files import save_bytes

LIMIT = 2**31 - 2**20  # bytes of weights that one protocol buffer holds beside the graph


def export_onnx(
    model: nn.Module,
    example: Tensor | tuple[Tensor, ...],
    path: Path | str,
    *,
    dynamic_shapes: tuple[Any, ...] | None = None,
) -> None:
    """Write a model as ONNX, for inference; sparse and packed layers become dense with zeros.

    ONNX has no operator for sparse weights that run times implement, so that zeros are stored and
    multiplied like any weight. The model itself stays as it is.

    Parameters
    ----------
    model : Module
        Exported in evaluation mode.
    example : Tensor or tuple of Tensor
        Its inputs; the file takes inputs of the same types and, by default, shapes.
    path : Path or str
        Replaced in one step.
    dynamic_shapes : tuple, optional
        Sizes that may differ from the example's, as `torch.export.export` takes them.

    Raises
    ------
    ImportError
        If onnx or onnxscript is missing.
    TypeError, ValueError
        If an example is no tensor, or the dense weights exceed the 2 GiB of an ONNX file.
    torch.onnx.OnnxExporterError
        If PyTorch cannot export the model.
    OSError
        If the file cannot be written; the previous one is intact.
    """
    if missing := [name for name in ("onnx", "onnxscript") if find_spec(name) is None]:
        raise ImportError(f"ONNX export needs {missing[0]}: pip install 'gossamer[onnx]'")
    inputs = example if isinstance(example, tuple) else (example,)
    for value in inputs:
        if not isinstance(value, Tensor):
            raise TypeError(f"expected example to be tensors, got {type(value).__name__}")
    dense = dense_copy(model).eval()
    size = sum(tensor.nbytes for tensor in (*dense.parameters(), *dense.buffers()))
    if size > LIMIT:
        raise ValueError(
            f"expected a model of at most {LIMIT} bytes, got {size}; try half precision or a part"
        )
    with warnings.catch_warnings():
        # PyTorch's exporter copies a class of its own that it deprecates.
        warnings.filterwarnings("ignore", r".*LeafSpec", FutureWarning)
        program = torch.onnx.export(
            dense, inputs, dynamo=True, verbose=False, dynamic_shapes=dynamic_shapes
        )
    if program is None:
        raise ValueError("expected PyTorch to return the exported model, got None")
    save_bytes(path, [program.model_proto.SerializeToString()])
