"""Specifications: frozen dataclasses read from plain tables, and written back to them.

A recipe, a stage, the options of a method or an attack are all dataclasses whose fields are the specification. This
file turns tables (from TOML, JSON or the command line) into them, with errors that name the path of the bad key.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tomllib
import types
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from robench.errors import UsageError, nearest
from robench.threat import ThreatModel, number

T = TypeVar("T")
Plain = None | bool | int | float | str | list[Any] | dict[str, Any]


def build(cls: Callable[..., T], table: Mapping[str, Any], where: str = "") -> T:
    """Make a dataclass from a plain table, checking every key and type.

    Args:
        cls: a dataclass; fields may be scalars, enums, threats, tuples, mappings or other dataclasses.
        table: keys and plain values.
        where: the path of this table, put before each key in error messages.

    Returns:
        The dataclass.

    Raises:
        UsageError: for an unknown, missing or ill-typed key.
    """
    if "__dataclass_fields__" not in dir(cls):
        raise UsageError(f"{getattr(cls, '__name__', cls)!r} must be a dataclass, whose fields are its options")
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    hints = get_type_hints(cls)
    for key in table:
        if key not in fields:
            match = nearest(key, fields)
            guess = f"; did you mean {match!r}?" if match else ""
            raise UsageError(f"{_join(where, key)}: unknown key{guess} (keys: {', '.join(fields)})")
    for name, field in fields.items():
        optional = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        if name not in table and not optional:
            raise UsageError(f"{_join(where, name)}: missing")
    return cls(**{key: convert(hints[key], value, _join(where, key)) for key, value in table.items()})


def convert(kind: Any, value: Any, where: str) -> Any:
    """Turn a plain value into the annotated kind, or say what was expected.

    Raises:
        UsageError: if the value does not fit.
    """
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return convert(next(arg for arg in args if arg is not type(None)), value, where)
    if origin is Literal:
        if value in args:
            return value
        raise UsageError(f"{where}: {value!r} is not one of {', '.join(map(repr, args))}")
    if origin is tuple and isinstance(value, Sequence) and not isinstance(value, str):
        kinds = [args[0]] * len(value) if len(args) == 2 and args[1] is Ellipsis else list(args)
        if len(kinds) == len(value):
            return tuple(convert(k, v, f"{where}.{i}") for i, (k, v) in enumerate(zip(kinds, value, strict=True)))
    if origin in (Mapping, dict) and isinstance(value, Mapping):
        return {str(key): convert(args[1], item, _join(where, str(key))) for key, item in value.items()}
    if kind is Any:
        return value
    if kind is ThreatModel:
        return value if isinstance(value, ThreatModel) else ThreatModel.parse(str(value))
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if isinstance(value, Mapping):
            return build(kind, value, where)
        raise UsageError(f"{where}: expected a table, not {value!r}")
    if isinstance(kind, type) and issubclass(kind, Enum):
        try:
            return kind(value)
        except ValueError:
            raise UsageError(f"{where}: {value!r} is not one of {', '.join(str(k.value) for k in kind)}") from None
    if kind is float and isinstance(value, str):
        return number(value, where)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(kind, type) and isinstance(value, kind) and not (kind is not bool and isinstance(value, bool)):
        return value
    long = "" if Ellipsis in args else f" of {len(args)}"
    listed = {tuple: f"a list{long}", Mapping: "a table", dict: "a table"}
    name = getattr(kind, "__name__", str(kind)) if origin is None else listed.get(origin, str(kind))
    raise UsageError(f"{where}: expected {name}, not {value!r}")


def assign(table: dict[str, Any], path: str, value: Any) -> None:
    """Set one value in nested tables, as `--set stage.0.epochs=2` does; numbers index lists.

    Raises:
        UsageError: if the path leads through something that is not a table or list, or past a list's end.
    """
    *parents, last = path.split(".")
    here: Any = table
    for depth, key in enumerate([*parents, last]):
        at = ".".join(path.split(".")[: depth + 1])
        if isinstance(here, list):
            if not key.isdecimal() or int(key) >= len(here):
                raise UsageError(f"{at}: there is no item {key!r}; items are 0 to {len(here) - 1}")
        elif not isinstance(here, dict):
            raise UsageError(f"{at}: {'.'.join(path.split('.')[:depth])} is not a table, so nothing can be set in it")
        slot: Any = int(key) if isinstance(here, list) else key
        if depth == len(parents):
            here[slot] = value
        else:
            here = here.setdefault(slot, {}) if isinstance(here, dict) else here[slot]


def assignment(text: str) -> tuple[str, Any]:
    """Read `path=value`; the value is TOML (`2`, `0.1`, `true`, `[1, 2]`) or else text.

    Raises:
        UsageError: if there is no `=` or no path.
    """
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise UsageError(f"{text!r}: expected KEY=VALUE, such as stage.0.epochs=2")
    try:
        found = tomllib.loads(f"value = {value}")
    except tomllib.TOMLDecodeError:
        return path.strip(), value
    return path.strip(), found["value"] if len(found) == 1 else value


def plain(value: Any) -> Plain:
    """The same content as tables, lists and scalars that JSON can hold; the inverse of `build`."""
    if isinstance(value, ThreatModel):
        return str(value)
    if isinstance(value, Enum):
        return plain(value.value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{value!r} has no plain form")


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON of a value: equal content, equal digest, on every machine."""
    text = json.dumps(plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key
