"""Our TensorRT code against all libraries' bindings: what we use is there, with those types.

10 and 11 are TensorRT's, rtx is TensorRT for RTX. Code for both calls either `trt`, code for the
latter alone calls it `rtx`.
"""

from __future__ import annotations

import ast
import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import fastfss

ROOT = Path(__file__).parents[2]
TYPINGS = ROOT / "typings"
SOURCES = sorted((Path(fastfss.__file__).parent / "engines" / "tensorrt").glob("*.py"))
# What a branch by version may use though not both have it: (version that lacks it, name).
ALLOWED: set[tuple[str, str]] = set()
versions = pytest.mark.parametrize("major", ["10", "11", "rtx"])
MODULES = {"10": "tensorrt", "11": "tensorrt", "rtx": "tensorrt_rtx_bindings"}


def api(major: str) -> dict[str, Any]:
    return json.loads((TYPINGS / f"tensorrt_api_{major}.json").read_text())


def attributes(source: str, module: str = "trt") -> set[str]:
    """Every `trt.a.b` of a source, as "a.b", and "a" of `trt.a` alone."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        while isinstance(node, ast.Attribute):
            names.insert(0, node.attr)
            node = node.value
        if names and isinstance(node, ast.Name) and node.id == module:
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


def test_every_attribute_of_one_library_alone_is_in_its_bindings() -> None:
    used = set().union(*(attributes(path.read_text(), "rtx") for path in SOURCES))
    used -= {"ComputeCapability.__members__"}
    assert "CudaGraphStrategy" in used
    assert not {name for name in used if not has(api("rtx"), name)}
    others = set().union(*(attributes(path.read_text()) for path in SOURCES))
    assert not others & {"CudaGraphStrategy", "ComputeCapability"}


def test_the_list_is_what_the_installed_bindings_say() -> None:
    bindings = pytest.importorskip("tensorrt_rtx_bindings")
    if bindings.__version__ != api("rtx")["version"]:
        pytest.skip(f"the list is of {api('rtx')['version']}, {bindings.__version__} is installed")
    with script("read_bindings") as module:
        assert module.api(bindings, api("11")) == api("rtx")


@versions
def test_what_is_not_in_the_bindings_is_found(major: str) -> None:
    source = "trt.Bilder(1); x = trt.BuilderFlag.TF33; trt.Builder(2); trt.volumes()"
    missing = {name for name in attributes(source) if not has(api(major), name)}
    assert missing == {"Bilder", "BuilderFlag.TF33", "volumes"}
    assert not has(api("11"), "BuilderFlag.FP16") and has(api("10"), "BuilderFlag.FP16")


@versions
def test_the_types_are_what_the_script_makes_of_the_bindings(major: str) -> None:
    kept = (TYPINGS / f"tensorrt_{major}" / MODULES[major] / "__init__.pyi").read_text()
    with script("generate") as module:
        assert module.stub(api(major), major) == kept


@contextmanager
def script(name: str) -> Iterator[ModuleType]:
    """One of typings/."""
    sys.path.insert(0, str(TYPINGS))
    try:
        yield importlib.import_module(name)
    finally:
        sys.path.remove(str(TYPINGS))


def checked(major: str, stubs: Path, *paths: Path) -> str:
    """What mypy says of sources, `tensorrt` being a library; `stubs` is an empty folder."""
    shutil.copytree(TYPINGS / f"tensorrt_{major}" / MODULES[major], stubs / "tensorrt")
    shutil.copytree(TYPINGS / "tensorrt_rtx" / MODULES["rtx"], stubs / MODULES["rtx"])
    pytest.importorskip("mypy")
    arguments = ["--strict", "--no-incremental", "--follow-imports=silent"]
    arguments += ["--untyped-calls-exclude=torch", *map(str, paths)]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", os.devnull, *arguments],
        env={**os.environ, "MYPYPATH": str(stubs)},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    return done.stdout + done.stderr


@pytest.mark.slow
@versions
def test_our_code_has_the_types_of_every_library(major: str, tmp_path: Path) -> None:
    assert "Success" in checked(major, tmp_path / "stubs", *SOURCES)


@pytest.mark.slow
def test_the_types_tell_the_versions_apart(tmp_path: Path) -> None:
    source = tmp_path / "uses.py"
    source.write_text("import tensorrt as trt\nflag = trt.BuilderFlag.FP16\n")
    assert "Success" in checked("10", tmp_path / "10", source)
    for major in ("11", "rtx"):
        said = checked(major, tmp_path / major, source)
        assert '"type[BuilderFlag]" has no attribute "FP16"' in said
