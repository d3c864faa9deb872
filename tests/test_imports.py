"""The house: a file imports from its own room and the floors below, never sideways or upwards."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from gossamer import catalog

SOURCE = Path(__file__).parents[1] / "src"

# From the ground up, one floor a line. Rooms of a floor do not import each other.
FLOORS = (
    ("errors", "measure", "penalties", "scores", "schedules", "allocations"),
    ("files", "patterns"),
    ("budgets",),
    ("kernels",),
    ("layers",),
    ("formats",),  # the adapters below: files that wings read and write
    (
        *("attention", "training", "compression", "conditional", "inference", "estimators"),
        *("imaging", "spatial", "dynamics", "graphs", "decisions"),
    ),
    ("adapters",),  # other people's models and environments, which meet a wing's base
    ("models",),
    ("data",),
    ("catalog",),
    ("testing", "bench"),
    ("reproduce",),
    ("report",),
    ("site",),
    ("cli",),
    ("", "__main__"),  # the names a user sees
)
FORMATS = ("compressed_tensors", "dense_copy", "onnx", "safetensors", "tensor_file")
WINGS = next(floor for floor in FLOORS if "attention" in floor)

# Doors that a wing opens upwards: imported when the user calls, never when the wing is imported.
DOORS = {
    ("gossamer.attention.base", "gossamer.adapters.transformers"),  # attention.use
    # compression.pack_linears and load
    ("gossamer.compression.saving", "gossamer.adapters.transformers.native_llama"),
}

# Methods beside those of the catalogue. GRASS is none of them: a pure function that finds the
# sparsifier which the live ones start from, and so a primitive of its family.
BASELINES = {
    "attention": ("dense", "streaming"),
    "training": ("dense", "magnitude_gradual", "rigl", "set", "static"),
    "graphs": ("ingrass",),
}


@cache
def modules(source: Path = SOURCE) -> dict[str, Path]:
    """Every module by its dotted name."""
    found = {}
    for path in sorted(source.rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(tree: ast.Module, package: str, known: set[str]) -> Iterator[str]:
    """The modules of the library that a file imports anywhere, functions and types included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join([*parents[: len(parents) - node.level + 1], base]).rstrip(".")
            whole = [f"{base}.{alias.name}" for alias in node.names]
            names = [name if name in known else base for name in whole]
        else:
            continue
        yield from (name for name in names if name.partition(".")[0] == "gossamer")


@cache
def edges(source: Path = SOURCE) -> set[tuple[str, str]]:
    """Pairs of a module and one that it imports."""
    found = modules(source)
    pairs = set()
    for name, path in found.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        tree = ast.parse(path.read_text("utf-8"))
        pairs |= {(name, other) for other in imported(tree, package, set(found))}
    return pairs


def room(module: str) -> str:
    """The room of a module: the first name below the library, or "formats"."""
    _, name, inner, *_ = [*module.split("."), "", ""]
    return "formats" if name == "adapters" and inner in FORMATS else name


def floor(module: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if room(module) in rooms)


def wrong(pairs: set[tuple[str, str]]) -> list[tuple[str, str]]:
    """Imports that lead upwards, or sideways into another room."""
    return sorted(
        (upper, lower)
        for upper, lower in pairs - DOORS
        if room(upper) != room(lower) and floor(lower) >= floor(upper)
    )


@cache
def methods() -> set[str]:
    """The modules that hold methods: entries of the catalogue, and baselines."""
    found = modules()
    named = {f"gossamer.{wing}.{name}" for wing, names in BASELINES.items() for name in names}
    assert named <= set(found)
    for paper in catalog.papers():
        package, _, name = paper.entry.partition(":")
        if paper.entry:
            named.add(origin(package, name, found))
    return named


def origin(module: str, name: str, found: dict[str, Path]) -> str:
    """Follow a name through the packages that pass it on to the module that defines it."""
    for node in ast.parse(found[module].read_text("utf-8")).body:
        if isinstance(node, ast.ImportFrom) and name in [alias.name for alias in node.names]:
            return origin(str(node.module), name, found)
    return module


def reached(start: str, pairs: set[tuple[str, str]]) -> set[str]:
    """What a module imports, directly and by way of files that are not methods."""
    seen: set[str] = set()
    ahead = {start}
    while ahead:
        at = ahead.pop()
        for upper, lower in pairs:
            if upper == at and lower not in seen:
                seen.add(lower)
                ahead |= {lower} - methods()
    return seen


def test_every_room_has_a_floor():
    rooms = {room(name) for name in modules()}
    known = {name for rooms in FLOORS for name in rooms}
    assert not rooms - known, "a new room: say on which floor of FLOORS it stands"
    assert set(WINGS) == set(catalog.WINGS) - {"bench", "catalog"}


def test_imports_lead_down():
    assert wrong(edges()) == []


def test_the_doors_are_still_in_use_and_open_late():
    pairs = edges()
    assert DOORS <= pairs
    for upper, lower in DOORS:
        body = ast.parse(modules()[upper].read_text("utf-8")).body
        at_import = [node for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
        loaded = imported(ast.Module(at_import, []), upper.rpartition(".")[0], set(modules()))
        assert lower not in set(loaded)


@pytest.mark.parametrize("method", sorted(methods()))
def test_no_method_imports_another(method: str):
    pairs = {pair for pair in edges() if pair[1] != method.rpartition(".")[0]}
    assert not (reached(method, pairs) & methods()) - {method}


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("graphs/a.py", "from gossamer.attention import HiPAttention"),
        ("graphs/a.py", "def f():\n    import gossamer.training.rigl"),
        ("kernels/spmm/a.py", "from gossamer import layers"),
        ("scores.py", "from gossamer.measure import density"),
        ("budgets.py", "if True:\n    from .kernels import spmm"),
        ("attention/a.py", "from ..training import base"),
        ("models/a.py", "from gossamer.reproduce import Claim"),
        ("catalog/a.py", "import gossamer.cli"),
    ],
)
def test_a_wrong_import_would_be_noticed(tmp_path: Path, file: str, text: str):
    for name in modules():
        path = tmp_path / modules()[name].relative_to(SOURCE)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    path = tmp_path / "gossamer" / file
    path.write_text(text)
    assert len(wrong(edges(tmp_path))) == 1
