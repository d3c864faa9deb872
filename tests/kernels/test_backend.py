"""Which implementation runs, and that calling it many times leaves nothing behind."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import gossamer.kernels as kernels
from gossamer.errors import BackendError
from gossamer.kernels import (
    WalkGraph,
    backend,
    block_sparse_state,
    instruction_set,
    instruction_sets,
)
from gossamer.patterns import TokenPattern, Window
from gossamer.testing import AttentionShape, attention_inputs, rotary_tables

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
built = pytest.mark.skipif(not instruction_sets(), reason="native kernels not built")


@pytest.fixture
def no_compiler(monkeypatch):
    monkeypatch.setattr(backend, "_native", None)
    backend._warn_reference.cache_clear()
    yield
    backend._warn_reference.cache_clear()


@built
def test_auto_picks_by_device():
    assert backend.choose("auto", CPU) == "cpu"
    assert backend.choose("auto", torch.device("meta")) == "reference"


def test_auto_picks_triton_on_cuda_where_the_operation_has_it(monkeypatch):
    monkeypatch.setattr(backend, "_has_triton", True)
    assert backend.choose("auto", CUDA) == "triton"
    assert backend.choose("auto", CUDA, backend.WITHOUT_TRITON) == "reference"
    monkeypatch.setattr(backend, "_has_triton", False)
    assert backend.choose("auto", CUDA) == "reference"


@built
def test_an_explicit_choice_is_kept():
    assert backend.choose("cpu", CPU) == "cpu"
    assert backend.choose("reference", CPU) == backend.choose("reference", CUDA) == "reference"


@pytest.mark.parametrize("impl", ["Reference", "", "gpu", None])
def test_an_unknown_choice_is_refused(impl):
    with pytest.raises(ValueError, match=r"one of auto, reference, cpu, triton, got"):
        backend.choose(impl, CPU)


@built
def test_cpu_kernels_refuse_other_devices():
    with pytest.raises(BackendError, match=r"impl='cpu' needs CPU tensors, got cuda; try .*auto"):
        backend.choose("cpu", CUDA)


def test_triton_refuses_cpu_tensors_unless_it_interprets(monkeypatch):
    monkeypatch.setattr(backend, "_has_triton", True)
    monkeypatch.setattr(backend, "_interpreting", lambda: False)
    with pytest.raises(BackendError, match="impl='triton' needs CUDA tensors, got cpu"):
        backend.choose("triton", CPU)
    monkeypatch.setattr(backend, "_interpreting", lambda: True)
    assert backend.choose("triton", CPU) == "triton"


def test_absent_triton_names_the_extra(monkeypatch):
    monkeypatch.setattr(backend, "_has_triton", False)
    with pytest.raises(BackendError, match=r"pip install gossamer\[triton\]"):
        backend.choose("triton", CUDA)


def test_without_a_compiler_the_reference_runs_and_says_so_once(no_compiler):
    inputs = attention_inputs(AttentionShape(1, 2, 1, 9, 9, 8))
    expected = block_sparse_state(*inputs, impl="reference")
    with pytest.warns(RuntimeWarning, match=r"Install a C\+\+ compiler .* reinstall gossamer"):
        found = block_sparse_state(*inputs)
    assert torch.equal(found.acc, expected.acc)
    block_sparse_state(*inputs)  # a second warning would be an error
    assert instruction_sets() == ()
    with pytest.raises(BackendError, match="impl='cpu' was not built: install a C"):
        block_sparse_state(*inputs, impl="cpu")
    with pytest.raises(BackendError, match="nothing to force"), instruction_set("portable"):
        pass
    with pytest.raises(BackendError, match="not built"):
        backend.native_module()


def test_importing_works_without_the_compiled_module():
    script = (
        "import sys; sys.modules['gossamer.kernels._native'] = None\n"
        "import gossamer.kernels as k; assert k.instruction_sets() == ()\n"
        "assert 'triton' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@built
def test_instruction_sets_are_forced_and_restored():
    sets = instruction_sets()
    active = backend.native_module().active
    assert sets[-1] == "portable" and active() == sets[0]
    with instruction_set("portable"):
        assert active() == "portable"
        with instruction_set(sets[0]):
            assert active() == sets[0]
        assert active() == "portable"
    with pytest.raises(KeyError), instruction_set("portable"):
        raise KeyError
    assert active() == sets[0]


@built
def test_an_unknown_instruction_set_is_refused_and_changes_nothing():
    active = backend.native_module().active
    before = active()
    with (
        pytest.raises(ValueError, match="cannot run instruction set 'sse9'"),
        instruction_set("sse9"),
    ):
        pass
    assert active() == before


SHAPE = AttentionShape(2, 6, 2, 40, 130, 16)
QUERY, KEY, VALUE = attention_inputs(SHAPE)
LISTS = TokenPattern(torch.arange(20, dtype=torch.int32).expand(2, 2, 5, 20), 8, 130)
BOUND = torch.zeros(2, 40, dtype=torch.int64)
CALLS: dict[str, dict[str, Any]] = {
    "block_sparse_attention": {"value": VALUE, "window": Window(4, 30), "return_lse": True},
    "block_sparse_state": {"value": VALUE},
    "gathered_attention": {"value": VALUE, "pattern": LISTS, "rotary": rotary_tables(20, 16)},
    "tree_search": {"tokens": 8, "window": 20},
    "paged_dot": {"query": QUERY[:, :, :1], "begin": BOUND[:, 0], "end": 100},
    "stripe_search": {
        "threshold": torch.zeros(2, 6, 40),
        "step": 1,
        "group": 1,
        "begin": BOUND,
        "end": BOUND + 100,
    },
    "random_walks": {
        "graph": WalkGraph(
            torch.tensor([[0, 1], [1, 1]]), torch.tensor([1, 0]).int(), torch.ones(2)
        ),
        "source": torch.zeros(9, dtype=torch.int64),
        "target": torch.ones(9, dtype=torch.int64),
    },
    "soft_votes": {"scores": torch.zeros(2, 6, 130)},
    "top_indices": {"values": torch.zeros(12, 130), "k": 9},
}


def resident() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmRSS:")[1].split()[0])


@built
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("name", CALLS)
def test_a_thousand_calls_leave_nothing_behind(name):
    function = getattr(kernels, name)
    arguments = CALLS[name]
    if name not in ("random_walks", "soft_votes", "top_indices"):
        first = "pooled" if name == "stripe_search" else "query"
        arguments = {first: QUERY, "key": KEY} | arguments
    for _ in range(50):
        function(**arguments)
    before = resident()
    for _ in range(1000):
        function(**arguments)
    assert resident() - before < 2**22  # a leak of 4 KiB a call
