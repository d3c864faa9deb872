"""What is said about the machine, and what is not."""

import platform
import re
import socket
from dataclasses import asdict

import pytest
import torch

from gossamer.bench import machine
from gossamer.bench.machine import Machine, describe

LAPTOP = Machine("cpu", "Example CPU @ 2 GHz", 2, 4, 8 * 2**30, ("avx512", "amx-bf16"), None, {})


def test_describe_reads_the_live_settings():
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        here = describe("cpu")
    finally:
        torch.set_num_threads(threads)
    assert here.device == "cpu"
    assert here.gpu is None
    assert here.threads == 1
    assert here.cores >= 1
    assert here.memory_bytes > 2**28
    assert here.instruction_sets[0] == torch.backends.cpu.get_cpu_capability().lower()
    assert here.versions["python"] == platform.python_version()
    assert here.versions["torch"].split("+")[0] == torch.__version__.split("+")[0]


def test_nothing_names_the_host():
    assert socket.gethostname() not in str(asdict(describe()))


def test_amx_is_listed_only_where_the_processor_has_it(monkeypatch):
    monkeypatch.setattr(machine, "_processor", lambda: ("cpu", {"amx_bf16"}))
    assert describe().instruction_sets[1:] == ("amx-bf16",)
    monkeypatch.setattr(machine, "_processor", lambda: ("cpu", set()))
    assert describe().instruction_sets[1:] == ()


def test_absent_packages_are_left_out(monkeypatch):
    monkeypatch.setattr(machine, "_PACKAGES", ("torch", "no-such-package-anywhere"))
    assert set(describe().versions) == {"python", "torch"}


@pytest.mark.parametrize(
    ("device", "gpu", "slug"),
    [
        ("cpu", None, "cpu-4-threads-avx512-amx-bf16"),
        ("cuda", "NVIDIA H100 80GB HBM3", "nvidia-h100-80gb-hbm3"),
        ("cuda", "../a b/" + "c" * 100, "a-b-" + "c" * 59),
    ],
)
def test_slug_is_short_and_safe(device, gpu, slug):
    fields = {**vars(LAPTOP), "device": device, "gpu": gpu}
    assert Machine(**fields).slug() == slug
    assert re.fullmatch(r"[a-z0-9][a-z0-9-]{0,63}", slug)


def test_summary_is_one_line():
    assert LAPTOP.summary() == "Example CPU @ 2 GHz, 2 cores, avx512 + amx-bf16, 8 GiB"


@pytest.mark.parametrize("device", ["tpu", "meta", "cuda:1"])
def test_other_devices_are_refused(device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match=f"device: expected .* got '{device}'"):
        describe(device)
