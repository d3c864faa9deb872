"""The machine a number was measured on, without anything that identifies its owner."""

import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

_PACKAGES = ("torch", "transformers", "gossamer")


@dataclass(frozen=True)
class Machine:
    """What a measurement ran on.

    Parameters
    ----------
    device : str
        ``"cpu"`` or ``"cuda"``.
    cpu : str
        Model name of the processor.
    cores : int
        Cores this process may use.
    threads : int
        Threads PyTorch uses inside an operator.
    memory_bytes : int
        Physical memory, bytes.
    instruction_sets : tuple of str
        The widest vector set PyTorch dispatches to, then ``"amx-bf16"`` where the CPU has it.
    gpu : str or None
        Name of the GPU, None on the CPU.
    versions : dict of str to str
        Python and the packages that shape the numbers; absent packages are left out.
    """

    device: str
    cpu: str
    cores: int
    threads: int
    memory_bytes: int
    instruction_sets: tuple[str, ...]
    gpu: str | None
    versions: dict[str, str]

    def slug(self) -> str:
        """Name the machine as a directory, for example ``cpu-2-threads-avx512``.

        Returns
        -------
        str
            Lower-case ASCII letters, digits and hyphens, at most 64 characters.
        """
        name = self.gpu or f"cpu {self.threads} threads {' '.join(self.instruction_sets)}"
        return re.sub(r"[^a-z0-9]+", "-", name.lower())[:64].strip("-")

    def summary(self) -> str:
        """Describe the machine in one line for tables and pages."""
        parts = [f"{self.cpu}, {self.cores} cores", " + ".join(self.instruction_sets)]
        parts.append(f"{self.memory_bytes / 2**30:.0f} GiB")
        return ", ".join([self.gpu, *parts] if self.gpu else parts)


def describe(device: str | torch.device = "cpu") -> Machine:
    """Describe this machine as it is set up now.

    Parameters
    ----------
    device : str or torch.device, default="cpu"
        ``"cpu"`` or a CUDA device.

    Returns
    -------
    Machine

    Raises
    ------
    ValueError
        If the device is neither a CPU nor a CUDA device that is present.

    Examples
    --------
    >>> describe("cpu").device
    'cpu'
    """
    try:
        target = torch.device(device)
    except RuntimeError:
        target = None
    if target is None or target.type not in ("cpu", "cuda"):
        raise ValueError(f"device: expected 'cpu' or 'cuda', got {device!r}")
    if target.type == "cuda" and (target.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device: expected one that is present, got {device!r}, try 'cpu'")

    cpu, flags = _processor()
    instruction_sets = [torch.backends.cpu.get_cpu_capability().lower()]
    if "amx_bf16" in flags:
        instruction_sets.append("amx-bf16")
    return Machine(
        device=target.type,
        cpu=cpu,
        cores=len(os.sched_getaffinity(0)),
        threads=torch.get_num_threads(),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        instruction_sets=tuple(instruction_sets),
        gpu=torch.cuda.get_device_name(target) if target.type == "cuda" else None,
        versions=_versions(),
    )


def commit() -> str:
    """Return the commit of the code that runs; "" where it is not a git checkout.

    Examples
    --------
    >>> len(commit()) in (0, 40)
    True
    """
    git = shutil.which("git")
    folder = Path(__file__).parent
    if git is None:
        return ""
    # A package that was installed into someone else's checkout is none of that checkout's files.
    tracked = [git, "-C", str(folder), "ls-files", "--error-unmatch", Path(__file__).name]
    head = [git, "-C", str(folder), "rev-parse", "HEAD"]
    for command in (tracked, head):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return ""
    return done.stdout.strip()


def _processor() -> tuple[str, set[str]]:
    """Read the CPU's model name and its flags; ARM kernels report neither."""
    fields: dict[str, str] = {}
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").split("\n\n", 1)[0].splitlines():
            key, _, value = line.partition(":")
            fields[key.strip()] = value.strip()
    return fields.get("model name", platform.machine()), set(fields.get("flags", "").split())


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
