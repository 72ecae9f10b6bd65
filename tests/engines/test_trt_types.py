"""Our TensorRT code against both versions' bindings: what we use is there, with those types."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import fastfss

ROOT = Path(__file__).parents[2]
TYPINGS = ROOT / "typings"
SOURCES = sorted((Path(fastfss.__file__).parent / "engines" / "tensorrt").glob("*.py"))
# What a branch by version may use though not both have it: (version that lacks it, name).
ALLOWED: set[tuple[str, str]] = set()
versions = pytest.mark.parametrize("major", ["10", "11"])


def api(major: str) -> dict[str, Any]:
    return json.loads((TYPINGS / f"tensorrt_api_{major}.json").read_text())


def attributes(source: str) -> set[str]:
    """Every `trt.a.b` of a source, as "a.b", and "a" of `trt.a` alone."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        while isinstance(node, ast.Attribute):
            names.insert(0, node.attr)
            node = node.value
        if names and isinstance(node, ast.Name) and node.id == "trt":
            found.add(".".join(names))
    return found


def has(found: dict[str, Any], name: str) -> bool:
    """Whether bindings have `trt.name`."""
    first, _, rest = name.partition(".")
    if first == "__version__":
        return not rest
    if first in found["enums"]:
        return not rest or rest in found["enums"][first]
    if first in found["classes"]:
        # pybind makes a class without a listed __init__ an opaque one; members are listed.
        return not rest or rest.partition(".")[0] in found["classes"][first]
    return first in found["functions"] and not rest


@versions
def test_every_attribute_is_in_the_bindings(major: str) -> None:
    found = api(major)
    used = set().union(*(attributes(path.read_text()) for path in SOURCES))
    assert {"Builder", "BuilderFlag.TF32", "ILogger.ERROR", "Runtime"} <= used
    missing = {name for name in used if not has(found, name) and (major, name) not in ALLOWED}
    assert not missing


@versions
def test_what_is_not_in_the_bindings_is_found(major: str) -> None:
    source = "trt.Bilder(1); x = trt.BuilderFlag.TF33; trt.Builder(2); trt.volumes()"
    missing = {name for name in attributes(source) if not has(api(major), name)}
    assert missing == {"Bilder", "BuilderFlag.TF33", "volumes"}
    assert not has(api("11"), "BuilderFlag.FP16") and has(api("10"), "BuilderFlag.FP16")


@versions
def test_the_types_are_what_the_script_makes_of_the_bindings(major: str) -> None:
    sys.path.insert(0, str(TYPINGS))
    try:
        import generate
    finally:
        sys.path.remove(str(TYPINGS))
    kept = (TYPINGS / f"tensorrt_{major}" / "tensorrt" / "__init__.pyi").read_text()
    assert generate.stub(api(major), major) == kept


def checked(major: str, *paths: Path) -> str:
    pytest.importorskip("mypy")
    arguments = ["--strict", "--no-incremental", "--follow-imports=silent"]
    arguments += ["--untyped-calls-exclude=torch", *map(str, paths)]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", os.devnull, *arguments],
        env={**os.environ, "MYPYPATH": str(TYPINGS / f"tensorrt_{major}")},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    return done.stdout + done.stderr


@pytest.mark.slow
@versions
def test_our_code_has_the_types_of_both_versions(major: str) -> None:
    assert "Success" in checked(major, *SOURCES)


@pytest.mark.slow
def test_the_types_tell_the_versions_apart(tmp_path: Path) -> None:
    source = tmp_path / "uses.py"
    source.write_text("import tensorrt as trt\nflag = trt.BuilderFlag.FP16\n")
    assert "Success" in checked("10", source)
    assert '"type[BuilderFlag]" has no attribute "FP16"' in checked("11", source)
