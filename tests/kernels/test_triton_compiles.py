"""The Triton kernels that tests only interpret compile for each architecture, without a GPU."""

import os
import subprocess
import sys
from typing import Any

import pytest
import torch

ARCHITECTURES = (75, 80, 86, 89, 90)
SHARED = {75: 65536, 80: 166912, 86: 101376, 89: 101376, 90: 232448}  # bytes a program may use


def compile_kernel(kernel: Any, signature: dict[str, Any], constants: dict[str, Any]) -> None:
    """Compile as for a launch; whatever `signature` leaves out is an int32."""
    from triton import compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    launch = ("num_warps", "num_stages")
    options = {name: constants.pop(name) for name in launch if name in constants}
    given = dict.fromkeys(kernel.arg_names, "i32") | signature
    source = ASTSource(kernel, given | dict.fromkeys(constants, "constexpr"), constants)
    for arch in ARCHITECTURES:
        found = compile(source, target=GPUTarget("cuda", arch, 32), options=options)
        if not found.asm["cubin"] or found.metadata.shared > SHARED[arch]:
            raise RuntimeError(f"sm_{arch}: {found.metadata.shared} bytes of shared memory")


def compile_tree_search() -> None:
    from gossamer.kernels.tree_search import triton

    def signature(dtype: str) -> dict[str, Any]:
        strides = ("i64", "i64", "i64", "i64")
        return {"queries": dtype, "key": dtype, "key_strides": strides} | {
            "channels": "*i64",
            "key_start": "*i64",
            "indices": "*i32",
            "scored": "*i64",
            "scratch": "*i32",
            "seed": "i64",
        }

    constants = triton.tile(2, 3, 64, 2, 256, torch.float32)
    compile_kernel(triton.tree_search_kernel, signature("*fp32"), constants)
    constants = triton.tile(1, 64, 64, 2, 256, torch.bfloat16)
    constants |= {"channels": None, "key_start": None}
    compile_kernel(triton.tree_search_kernel, signature("*bf16"), constants)


def compile_stripe_search() -> None:
    from gossamer.kernels.stripe_search import triton

    strides = ("i32", "i32", "i32", "i32")
    pointers = {"threshold": "*fp32", "begin": "*i64", "end": "*i64", "hits": "*u8"}
    for dtype, name in ((torch.float32, "*fp32"), (torch.bfloat16, "*bf16")):
        signature = {"pooled": name, "key": name, **pointers}
        signature |= {"pooled_strides": strides, "key_strides": strides}
        constants = triton.tiling(128, 16, dtype)
        compile_kernel(triton.stripe_search_kernel, signature, constants)


KERNELS = {"stripe_search": compile_stripe_search, "tree_search": compile_tree_search}


@pytest.mark.parametrize("name", KERNELS)
def test_compiles(name: str) -> None:
    """In a process of its own: other tests may have left a Triton that interprets."""
    pytest.importorskip("triton")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, __file__, name]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


if __name__ == "__main__":
    KERNELS[sys.argv[1]]()
