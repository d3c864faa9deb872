"""The file format of LiteRT: a graph of operators on tensors, written call by call."""

import importlib
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 16  # bytes, of the data of a stored tensor; the schema asks for it
LAST_SHORT_CODE = 127  # operators up to this one are also named by a byte, for old readers


class TfliteFile:
    """A LiteRT model in the making. Tensors are numbers; images are [N, H, W, C].

    Raises
    ------
    ImportError
        If ai-edge-litert, whose classes describe the format, is missing.
    """

    def __init__(self) -> None:
        if missing := [n for n in ("ai_edge_litert", "flatbuffers") if find_spec(n) is None]:
            raise ImportError(f"LiteRT export needs {missing[0]}: pip install 'gossamer[peers]'")
        self.schema: Any = importlib.import_module("ai_edge_litert.schema_py_generated")
        self._tensors: list[Any] = []
        self._operators: list[Any] = []
        self._codes: list[int] = []
        self._buffers = [self.schema.BufferT()]  # the first one is that of values yet to come

    def value(self, shape: Sequence[int]) -> int:
        """Add a float32 tensor that is an input or computed."""
        return self._add(shape, np.dtype(np.float32))

    def constant(self, array: NDArray[Any]) -> int:
        """Add a stored tensor, float32 or int32."""
        return self._add(array.shape, array.dtype, array)

    def sparse_constant(self, array: NDArray[np.float32]) -> int:
        """Add a tensor [..., K] stored as the non-zero values of its rows, and its expansion."""
        rows, columns = np.nonzero(array.reshape(-1, array.shape[-1]))
        ends = np.searchsorted(rows, np.arange(array.size // array.shape[-1] + 1))
        schema = self.schema
        dimensions = [schema.DimensionMetadataT(denseSize=size) for size in array.shape[:-1]]
        dimensions.append(
            schema.DimensionMetadataT(
                format=schema.DimensionType.SPARSE_CSR,
                arraySegmentsType=schema.SparseIndexVector.Int32Vector,
                arraySegments=schema.Int32VectorT(values=ends.astype(np.int32)),
                arrayIndicesType=schema.SparseIndexVector.Int32Vector,
                arrayIndices=schema.Int32VectorT(values=columns.astype(np.int32)),
            )
        )
        stored = self._add(array.shape, array.dtype, array[array != 0])
        self._tensors[stored].sparsity = schema.SparsityParametersT(
            traversalOrder=list(range(array.ndim)), dimMetadata=dimensions
        )
        return self.call("DENSIFY", [stored], array.shape, schema.DensifyOptionsT())

    def call(self, name: str, reads: list[int], shape: Sequence[int], options: Any = None) -> int:
        """Add an operator, with the schema's options for it, and the value that it returns."""
        code = getattr(self.schema.BuiltinOperator, name)
        if code not in self._codes:
            self._codes.append(code)
        operator = self.schema.OperatorT(opcodeIndex=self._codes.index(code), inputs=reads)
        operator.outputs = [self.value(shape)]
        if options is not None:
            kind = type(options).__name__.removesuffix("T")
            operator.builtinOptionsType = getattr(self.schema.BuiltinOptions, kind)
            operator.builtinOptions = options
        self._operators.append(operator)
        return operator.outputs[0]

    def content(self, inputs: list[int], outputs: list[int]) -> bytes:
        """Return the file."""
        schema = self.schema
        graph = schema.SubGraphT(
            tensors=self._tensors, operators=self._operators, inputs=inputs, outputs=outputs
        )
        codes = [
            schema.OperatorCodeT(
                builtinCode=code, deprecatedBuiltinCode=min(code, LAST_SHORT_CODE), version=1
            )
            for code in self._codes
        ]
        model = schema.ModelT(
            version=3, operatorCodes=codes, subgraphs=[graph], buffers=self._buffers
        )
        builder = _aligned_builder()
        builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
        return bytes(builder.Output())

    def _add(
        self, shape: Sequence[int], dtype: np.dtype[Any], data: NDArray[Any] | None = None
    ) -> int:
        buffer = 0
        if data is not None:
            buffer = len(self._buffers)
            content = np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)
            self._buffers.append(self.schema.BufferT(data=content))
        kind = getattr(self.schema.TensorType, dtype.name.upper())
        name = f"tensor_{len(self._tensors)}"
        self._tensors.append(
            self.schema.TensorT(shape=list(shape), type=kind, buffer=buffer, name=name)
        )
        return len(self._tensors) - 1


def _aligned_builder() -> Any:
    """Return a builder of flatbuffers that aligns arrays, which theirs does for no buffer."""
    flatbuffers = importlib.import_module("flatbuffers")

    class Builder(flatbuffers.Builder):
        def CreateNumpyVector(self, x: NDArray[Any]) -> int:
            self.Prep(ALIGNMENT, x.nbytes)
            return super().CreateNumpyVector(x)

    return Builder(1 << 20)
