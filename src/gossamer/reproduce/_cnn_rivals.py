"""What else runs a pruned convolutional network on this CPU: PyTorch, ONNX Runtime and LiteRT."""

import copy
import importlib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from gossamer.adapters.litert import export_litert
from gossamer.adapters.onnx import export_onnx

Runners = dict[str, Callable[[], Tensor]]


def torch_runners(model: nn.Module, image: Tensor, *, compiled: bool) -> Runners:
    """Run it by PyTorch, in both layouts, in bfloat16, and compiled with its weights frozen."""
    mixed = image.contiguous(memory_format=torch.channels_last)
    by_pixel: nn.Module = copy.deepcopy(model).to(  # pyright: ignore[reportCallIssue]
        memory_format=torch.channels_last
    )
    half = copy.deepcopy(by_pixel).bfloat16()

    def run(network: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], Tensor]:
        return torch.no_grad()(lambda: network(x))

    runners = {
        "torch NCHW": run(model, image),
        "torch channels_last": run(by_pixel, mixed),
        "bfloat16": run(half, mixed.bfloat16()),
    }
    if compiled:
        frozen = torch.compile(by_pixel, options={"freezing": True})
        runners["torch.compile"] = run(frozen, mixed)
    return runners


def engine_runners(model: nn.Module, image: Tensor, expected: Tensor) -> tuple[Runners, str]:
    """Run it by other engines, and note those that are not installed.

    Raises
    ------
    AssertionError
        If an engine's output is further from the expected one than 1e-4 of the largest value.
    """
    engines = (
        (("onnx", "onnxscript", "onnxruntime"), _onnx_runners),
        (("ai_edge_litert", "flatbuffers"), _litert_runners),
    )
    runners: Runners = {}
    absent: list[str] = []
    for packages, start in engines:
        missing = [name for name in packages if find_spec(name) is None]
        absent += missing
        runners |= {} if missing else start(model, image)
    bound = 1e-4 * float(expected.abs().max())
    for run in runners.values():
        torch.testing.assert_close(run(), expected, rtol=0.0, atol=bound)
    return runners, f"; not installed: {', '.join(absent)}" if absent else ""


def _onnx_runners(model: nn.Module, image: Tensor) -> Runners:
    """Export the dense network with its zeros; ONNX Runtime optimises graph and layout."""
    onnxruntime = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        export_onnx(model, image, path)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: image.numpy()}
    return {"onnxruntime": lambda: torch.from_numpy(session.run(None, feed)[0])}


def _litert_runners(model: nn.Module, image: Tensor) -> Runners:
    """Export the network, its zeros stored and not, for LiteRT's interpreter on XNNPACK."""
    litert = importlib.import_module("ai_edge_litert.interpreter")
    pixels = image.permute(0, 2, 3, 1).contiguous().numpy()

    def start(content: bytes, threads: int) -> Callable[[], Tensor]:
        interpreter = litert.Interpreter(model_content=content, num_threads=threads)
        interpreter.allocate_tensors()
        source = interpreter.get_input_details()[0]["index"]
        target = interpreter.get_output_details()[0]["index"]

        def run() -> Tensor:
            interpreter.set_tensor(source, pixels)
            interpreter.invoke()
            return torch.from_numpy(interpreter.get_tensor(target))

        return run

    runners: Runners = {}
    with TemporaryDirectory() as folder:
        path = Path(folder, "model.tflite")
        for weights in ("dense", "sparse"):
            export_litert(model, image, path, weights=weights)
            for threads in sorted({1, torch.get_num_threads()}):
                name = f"litert {weights} weights on {threads}"
                runners[name] = start(path.read_bytes(), threads)
    return runners
