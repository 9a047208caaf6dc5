"""Values from JSON as the dataclasses that they were written from."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any

from metastable.errors import DataError


def read(kind: Any, value: Any, where: str) -> Any:
    """`value` from JSON as a `kind`: a dataclass, a container of such, or a plain type.

    Raises DataError, which names `where` in the value the fault is.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        [real] = [one for one in arguments if one is not type(None)]
        return None if value is None else read(real, value, where)
    if origin is typing.Literal:
        return value
    if origin is list and isinstance(value, list):
        return [read(arguments[0], one, where) for one in value]
    if origin is tuple and isinstance(value, list) and len(value) == len(arguments):
        return tuple(read(*pair, where) for pair in zip(arguments, value, strict=True))
    if origin is dict and isinstance(value, dict):
        return {name: read(arguments[1], one, f"{where}, {name}") for name, one in value.items()}
    hints = typing.get_type_hints(kind) if isinstance(kind, type) else {}
    if isinstance(kind, type) and dataclasses.is_dataclass(kind) and isinstance(value, dict):
        needed = {
            f.name
            for f in dataclasses.fields(kind)
            if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        }
        if missing := sorted(needed - set(value)):
            raise DataError(f"{where} lacks {', '.join(missing)}")
        known = {name: one for name, one in value.items() if name in hints}
        return kind(**{name: read(hints[name], one, f"{where}, {name}") for name, one in known.items()})
    if hasattr(kind, "_fields") and isinstance(value, list) and len(value) == len(hints):
        return kind(*(read(*pair, where) for pair in zip(hints.values(), value, strict=True)))
    numeric = kind is float and isinstance(value, int) and not isinstance(value, bool)
    if numeric or (kind in (str, int, float, bool) and type(value) is kind):
        return value
    raise DataError(f"{where} is no {getattr(kind, '__name__', kind)}")
