import os
from collections.abc import Iterator

import pytest
import torch

from gossamer.kernels import instruction_set, instruction_sets


@pytest.fixture(autouse=True)
def one_thread(request: pytest.FixtureRequest) -> Iterator[None]:
    """Small tensors are quickest on one thread; slow tests keep them all.

    A test about threads sets its own number: it is restored after each.
    """
    before = torch.get_num_threads()
    if request.node.get_closest_marker("slow") is None:
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["reference", *instruction_sets()])
def impl(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every implementation that runs here: the reference, and the native kernels on each ISA."""
    if request.param == "reference":
        yield "reference"
    else:
        with instruction_set(request.param):
            yield "cpu"


class FileFaults:
    """Counts the file system calls of one save and makes the n-th one go wrong."""

    NAMES = ("open", "write", "fsync", "replace", "close")

    def __init__(self, monkeypatch, n, error, *, killed=False):
        self.n, self.error, self.killed = n, error, killed
        self.calls, self.renamed, self.leaked = 0, False, []
        for name in self.NAMES:
            monkeypatch.setattr(os, name, self.wrap(name, getattr(os, name)))
        if killed:  # after a kill nothing else reaches the disk, clean-up included
            monkeypatch.setattr(os, "unlink", self.wrap("unlink", os.unlink))

    def wrap(self, name, real):
        def call(*arguments, **options):
            self.calls += 1
            dead = self.killed and self.calls > self.n
            if name == "close" and (dead or self.calls == self.n):
                self.leaked.append(arguments[0])
            if name == "write" and self.calls == self.n:
                real(arguments[0], bytes(arguments[1])[:7])  # the disk fills up halfway
            if dead or self.calls == self.n:
                raise self.error
            result = real(*arguments, **options)
            self.renamed |= name == "replace"
            return result

        return call


@pytest.fixture
def file_faults() -> type[FileFaults]:
    """A save under it fails at the call of its choice: ``file_faults(monkeypatch, n, error)``."""
    return FileFaults
