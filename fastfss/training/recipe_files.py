"""Recipes as TOML: read, overridden, compared."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import sys
import types
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from fastfss.errors import expected, expected_kind
from fastfss.reading import read_text
from fastfss.training.recipe import Recipe

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# What does not change what comes out: where data lies, and how often something is written.
_FREE = (
    "about",
    "data.root",
    "data.activations",
    "checkpoints.",
    "log.",
    "cache.folder",
    "cache.limit_gib",
)


def list_recipes() -> dict[str, str]:
    """The recipes that fastfss brings along: name -> what it is."""
    return {name: load_recipe(name).about for name in sorted(_own())}


def load_recipe(source: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read and check a recipe.

    A recipe with a `base` takes over what that one says and it does not: another of list_recipes(),
    or a file beside its own.

    Args:
        source: a TOML file, or one of list_recipes().
        overrides: "section.key=value", the value as TOML has it; text needs no quotes.

    Raises:
        FileNotFoundError: there is no such file or recipe.
        ValueError: not TOML, an unknown or missing key, or an impossible value; the key is named.
        TypeError: a value of the wrong kind; the key is named.

    Examples:
        >>> load_recipe("ssp-pascal", ["optimiser.lr=0.01"]).optimiser.lr
        0.01
    """
    table = _table(source, Path())
    for override in overrides:
        _override(table, override)
    recipe: Recipe = _parse(Recipe, table, "")
    return recipe


def recipe_from(settings: Mapping[str, Any]) -> Recipe:
    """The recipe of nested dictionaries, checked as a file is."""
    recipe: Recipe = _parse(Recipe, settings, "")
    return recipe


def flat(recipe: Recipe) -> dict[str, Any]:
    """Every setting by its dotted key, as plain values."""
    found: dict[str, Any] = {}

    def visit(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                visit(f"{prefix}.{key}" if prefix else key, inner)
        else:
            found[prefix] = value

    visit("", json.loads(json.dumps(dataclasses.asdict(recipe))))
    return found


def deciding(recipe: Recipe) -> dict[str, Any]:
    """The settings that decide what comes out."""
    settings = {k: v for k, v in flat(recipe).items() if not k.startswith(_FREE)}
    if recipe.schedule.kind == "constant":
        # Then more steps only go on where fewer stopped.
        settings = {k: v for k, v in settings.items() if k not in ("run.steps", "run.epochs")}
    return settings


def recipe_digest(recipe: Recipe) -> str:
    """sha256 over the settings that decide what comes out."""
    return hashlib.sha256(json.dumps(deciding(recipe), sort_keys=True).encode()).hexdigest()


def differences(mine: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """`key: theirs -> mine` for every setting that differs."""
    return [
        f"{key}: {other.get(key, 'not set')!r} -> {mine.get(key, 'not set')!r}"
        for key in sorted(mine.keys() | other.keys())
        if mine.get(key) != other.get(key)
    ]


def _own() -> dict[str, str]:
    folder = resources.files("fastfss.training") / "recipes"
    return {
        file.name.removesuffix(".toml"): file.read_text(encoding="utf-8")
        for file in folder.iterdir()
        if file.name.endswith(".toml")
    }


def _table(source: str | Path, beside: Path, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """The sections of a recipe, those of its bases included."""
    own, path = _own(), beside / source
    if str(source) in own:
        text = own[str(source)]
    elif path.is_file():
        text = read_text(path, f"recipe {source}")
    else:
        near = difflib.get_close_matches(str(source), own, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise FileNotFoundError(
            f"recipe: no file {str(source)!r} and no recipe of this name{hint} "
            "(fastfss train --list shows them)"
        )
    try:
        table: dict[str, Any] = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise expected(f"recipe {source}", "TOML", f"an error: {error}") from error
    base = table.pop("base", None)
    if base is None:
        return table
    if not isinstance(base, str):
        raise expected_kind("base", "the name or file of a recipe", repr(base))
    if base in above:
        raise expected("base", "a recipe that is not built on this one", repr(base))
    return _merged(_table(base, path.parent, (*above, str(source))), table)


def _merged(base: dict[str, Any], table: Mapping[str, Any]) -> dict[str, Any]:
    """The base with what the table says otherwise; sections are merged, options are not."""
    merged = dict(base)
    for key, value in table.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict) and key != "options"
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _override(table: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path):
        raise expected("--set", "section.key=value", repr(override))
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    for step in path[:-1]:
        table = table.setdefault(step, {})
        if not isinstance(table, dict):
            raise expected("--set", f"a section before .{path[-1]}", repr(override))
    table[path[-1]] = value


def _parse(kind: Any, value: Any, key: str) -> Any:
    """A value of the kind that a field declares; errors name the key."""
    if dataclasses.is_dataclass(kind):
        return _parse_section(kind, value, key)
    origin, options = get_origin(kind), get_args(kind)
    if origin is Literal:
        if value not in options or isinstance(value, bool):
            raise expected(key, f"one of {', '.join(map(str, options))}", repr(value))
        return value
    if origin in (Union, types.UnionType):
        for option in options:
            try:
                return _parse(option, value, key)
            except (TypeError, ValueError):
                continue
        wanted = " or ".join(_name(option) for option in options if option is not types.NoneType)
        raise expected_kind(key, wanted, repr(value))
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise expected_kind(key, "a list", repr(value))
        kinds = [options[0]] * len(value) if options[-1] is Ellipsis else list(options)
        if len(value) != len(kinds):
            raise expected(key, f"{len(kinds)} values", repr(value))
        return tuple(_parse(kind, one, key) for kind, one in zip(kinds, value, strict=True))
    if origin is not None:  # Mapping[str, Option]
        if not isinstance(value, dict):
            raise expected_kind(key, "a table", repr(value))
        return {name: _parse(options[1], one, f"{key}.{name}") for name, one in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise expected_kind(key, _name(kind), repr(value))
    return value


def _parse_section(kind: Any, value: Any, key: str) -> Any:
    if not isinstance(value, Mapping):
        raise expected_kind(key or "recipe", "a table", repr(value))
    prefix = f"{key}." if key else ""
    hints = get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name in value:
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            wanted = f"{near[0]!r} perhaps" if near else f"one of {', '.join(fields)}"
            raise expected(f"{prefix}{name}", f"a known key ({wanted})", "an unknown one")
    for name, field in fields.items():
        optional = (field.default, field.default_factory) != (dataclasses.MISSING,) * 2
        if name not in value and not optional:
            raise expected(f"{prefix}{name}", _name(hints[name]), "nothing; it must be set")
    return kind(**{n: _parse(hints[n], one, f"{prefix}{n}") for n, one in value.items()})


def _name(kind: Any) -> str:
    if dataclasses.is_dataclass(kind):
        return "a table"
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
    return names.get(kind, "a list" if get_origin(kind) is tuple else str(kind))
