"""Frozen dataclasses of what JSON keeps of them, every field checked."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Literal, TypeVar, get_args

Built = TypeVar("Built")


def built(kind: type[Built], found: Mapping[str, Any]) -> Built:
    """A dataclass of what JSON keeps of it.

    Args:
        kind: the dataclass.
        found: its fields.

    Raises:
        KeyError: a field too many or too few.
        TypeError: a value of another kind than its field's.
    """
    hints = typing.get_type_hints(kind)
    names = {one.name for one in fields(kind)}  # type: ignore[arg-type]
    if found.keys() != names:
        raise KeyError(f"{kind.__name__} of {', '.join(sorted(names ^ found.keys()))}")
    return kind(**{name: _value(hints[name], found[name], name) for name in names})


def _value(hint: Any, value: Any, name: str) -> Any:
    origin, inner = typing.get_origin(hint), get_args(hint)
    if origin in (typing.Union, types.UnionType):
        for one in inner:
            try:
                return _value(one, value, name)
            except TypeError:
                continue
    elif is_dataclass(hint) and isinstance(hint, type):
        if isinstance(value, dict):
            return built(hint, value)
    elif origin is tuple and isinstance(value, list):
        kinds = [inner[0]] * len(value) if inner[-1] is Ellipsis else inner
        if len(kinds) == len(value):
            return tuple(_value(one, part, name) for one, part in zip(kinds, value, strict=True))
    elif origin is Literal:
        if isinstance(value, str) and value in inner:
            return value
    elif isinstance(origin, type) and issubclass(origin, Mapping):
        if isinstance(value, dict):
            return {key: _value(inner[1], part, name) for key, part in value.items()}
    elif isinstance(origin, type) and issubclass(origin, Sequence):
        if isinstance(value, list):
            return [_value(inner[0], part, name) for part in value]
    elif type(value) is hint or (hint is float and type(value) is int):
        return value
    raise TypeError(f"{name}: {value!r}")
