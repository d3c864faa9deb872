"""Frozen records from JSON data and back to a JSON schema, by their type annotations alone."""

import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

_T = TypeVar("_T")
_SIMPLE = {str: "string", int: "integer", float: "number", bool: "boolean"}
Plain = str | int | float | bool


def build(kind: type[_T], value: Any, where: str = "") -> _T:
    """Build a record from parsed JSON, strictly.

    Parameters
    ----------
    kind : type
        A dataclass whose fields are text, numbers, literals, tuples, mappings of text or further
        such dataclasses, or None.
    value : JSON data
    where : str, default ""
        Path of the value in its document, for messages.

    Raises
    ------
    ValueError
        If a field is missing, unknown, of another type, or a number is not finite.

    Examples
    --------
    >>> from gossamer.catalog.reports import Measured
    >>> build(Measured, {"values": [1.5, 2], "provenance": "measured_here"}).values
    (1.5, 2.0)
    """
    return _build(kind, value, where)


def _build(kind: Any, value: Any, where: str) -> Any:
    if is_dataclass(kind):
        return _record(kind, value, where)
    origin, options = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        (kind,) = (option for option in options if option is not type(None))
        return _build(kind, value, where)
    if origin is Literal:
        if value not in options or not isinstance(value, str):
            raise ValueError(f"{where}: expected one of {', '.join(options)}, got {value!r}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where}: expected a list, got {value!r}")
        return tuple(_build(options[0], one, f"{where}[{i}]") for i, one in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict) or not all(isinstance(one, Plain) for one in value.values()):
            raise ValueError(f"{where}: expected an object of text and numbers, got {value!r}")
        return dict(value)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise ValueError(f"{where}: expected {_SIMPLE[kind]}, got {value!r}")
    return value


def _record(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where or 'document'}: expected an object, got {value!r}")
    hints = get_type_hints(kind)
    needed = {f.name for f in fields(kind) if f.default is f.default_factory is MISSING}
    inside = f"{where}." if where else ""
    if missing := sorted(needed - value.keys()):
        raise ValueError(f"{inside}{missing[0]}: expected it, got no such field")
    if unknown := sorted(value.keys() - hints.keys()):
        raise ValueError(f"{inside}{unknown[0]}: expected one of {', '.join(hints)}")
    found = {name: _build(hints[name], one, f"{inside}{name}") for name, one in value.items()}
    try:
        return kind(**found)
    except ValueError as error:
        raise ValueError(f"{where}: {error}" if where else str(error)) from error


def json_schema(kind: Any) -> dict[str, Any]:
    """Return the JSON schema of what `build` takes for a record.

    Examples
    --------
    >>> from gossamer.catalog.reports import Measured
    >>> sorted(json_schema(Measured)["properties"])
    ['provenance', 'values']
    """
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        return {
            "type": "object",
            "properties": {name: json_schema(hint) for name, hint in hints.items()},
            "required": [f.name for f in fields(kind) if f.default is f.default_factory is MISSING],
            "additionalProperties": False,
        }
    origin, options = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return {"anyOf": [json_schema(option) for option in options]}
    if origin is Literal:
        return {"enum": list(options)}
    if origin is tuple:
        return {"type": "array", "items": json_schema(options[0])}
    if origin is dict:
        return {"type": "object", "additionalProperties": {"type": [*_SIMPLE.values()]}}
    return {"type": "null" if kind is type(None) else _SIMPLE[kind]}
