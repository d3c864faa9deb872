"""Conformance of a method's record of parameters, whatever its family."""

import pickle
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import FrozenInstanceError, fields
from math import inf
from typing import Any

from gossamer import patterns


def check_record(method: Any) -> None:
    """Check a frozen record: it only stores its parameters, and every copy equals it."""
    kind = type(method)
    stored = {field.name: getattr(method, field.name) for field in fields(method)}
    expect(vars(method) == stored, f"{kind.__name__} stores more than its parameters")
    with suppress(FrozenInstanceError):
        setattr(method, next(iter(stored), "anything"), None)
        raise AssertionError(f"expected a frozen dataclass, but {kind.__name__} can be changed")
    copies = {
        "its parameters": kind(**stored),
        "its repr": eval(repr(method), {**vars(patterns), kind.__name__: kind, "inf": inf}),
        "a pickle": pickle.loads(pickle.dumps(method)),
        "a deep copy": deepcopy(method),
    }
    for source, copy in copies.items():
        same = copy == method and hash(copy) == hash(method)
        expect(same, f"{method} made from {source} gives {copy}")


def check_documented(kind: type[Any]) -> None:
    """Check that the class docstring explains every parameter and has an example."""
    text = kind.__doc__ or ""
    expect(">>> " in text, f"{kind.__name__} has no example in its docstring")
    for field in fields(kind):
        listed = re.search(rf"^    (\w+, )*{field.name}(, \w+)* : ", text, re.MULTILINE)
        expect(listed is not None, f"{kind.__name__} does not document {field.name}")


def check_refusals(kind: type[Any], refused: Iterable[tuple[Mapping[str, Any], str]]) -> None:
    """Check that the constructor refuses parameters with a ValueError that says why."""
    for parameters, pattern in refused:
        call = f"{kind.__name__}({', '.join(f'{k}={v!r}' for k, v in parameters.items())})"
        try:
            kind(**parameters)
        except ValueError as error:
            expect(re.search(pattern, str(error)) is not None, f"{call} says {error!s}")
        else:
            raise AssertionError(f"expected {call} to raise ValueError, it did not")


def expect(condition: bool, message: str) -> None:
    """Raise AssertionError with the message unless the condition is true."""
    if not condition:
        raise AssertionError(message)
