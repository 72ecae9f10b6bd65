"""Imports go one way through the layers, and importing fastfss is quiet and light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "fastfss"

# From the bottom up: a part imports from its own row and from the rows above it in this list, and
# within a row no two parts import each other.
LAYERS = (
    {"allocation", "errors", "atomic", "caching", "reading", "_native", "kernels"},
    {"data", "result", "weights", "task", "ops"},
    {"annotation", "encoders", "text"},
    {"methods"},
    {"engines", "environment", "interactive"},
    {"benchmarks", "protocols", "training", "video"},
    {"cli", "app"},
)
RANK = {part: rank for rank, parts in enumerate(LAYERS) for part in parts}
# fastfss/__init__.py shows the parts to the outside and __main__.py starts the program: nothing
# below imports from them but the version.
FACADE = {"__init__", "__main__"}

# What `import fastfss` must not load: optional packages, and those that compile.
HEAVY = {
    *("timm", "typer", "rich", "triton", "pycocotools", "skimage", "scipy", "tensorboard", "cv2"),
    *("open_clip", "matplotlib"),
    *("fastapi", "starlette", "uvicorn", "websockets", "pydantic"),
    *("onnx", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx_bindings"),
    *("pyarrow", "ray"),
}
IMPORT_ALL_BUT_PROGRAMS_AND_KERNELS = """
import importlib, pkgutil, fastfss
for module in pkgutil.walk_packages(fastfss.__path__, "fastfss."):
    if module.name.split(".")[1] not in ("app", "cli", "kernels", "__main__"):
        importlib.import_module(module.name)
"""


def sources() -> list[Path]:
    """The package's files; kernels/ is a link, which rglob does not follow."""
    return [*PACKAGE.rglob("*.py"), *(PACKAGE / "kernels").glob("*.py")]


def part_of(path: Path) -> str:
    """The part of fastfss that a file belongs to: `ops` for fastfss/ops/explain.py."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_parts(path: Path, tree: ast.AST) -> set[str]:
    """The parts of fastfss that a file imports, wherever in the file it does."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    inside = {name.split(".")[1] for name in names if name.startswith("fastfss.")}
    return inside - {"__version__"}


def arrows() -> set[tuple[str, str, str]]:
    """(importing part, imported part, the file that does) over the whole package."""
    found = set()
    for path in sources():
        tree = ast.parse(path.read_text())
        for other in imported_parts(path, tree) - {part_of(path)}:
            found.add((part_of(path), other, str(path.relative_to(PACKAGE))))
    return found


def test_every_part_has_a_layer():
    parts = {part_of(path) for path in sources()} - FACADE
    assert parts <= set(RANK), "a new part of fastfss: give it a place in LAYERS"


def test_imports_go_to_the_same_layer_or_a_lower_one():
    wrong = sorted(
        f"{file}: {part} imports {other}"
        for part, other, file in arrows()
        if part not in FACADE and RANK.get(other, len(LAYERS)) > RANK[part]
    )
    assert not wrong


def test_no_two_parts_import_each_other():
    below: dict[str, set[str]] = {}
    for part, other, _ in arrows():
        below.setdefault(part, set()).add(other)

    def reach(part: str, seen: frozenset[str] = frozenset()) -> set[str]:
        found = set(below.get(part, ()))
        for other in found - seen:
            found |= reach(other, seen | found)
        return found

    assert not [part for part in below if part in reach(part)]


@pytest.mark.parametrize(
    "code", ["import fastfss", IMPORT_ALL_BUT_PROGRAMS_AND_KERNELS], ids=["package", "all"]
)
def test_import_prints_nothing_starts_nothing_and_loads_nothing_optional(code):
    """Against what torch and torchvision load by themselves."""
    program = f"""
import sys
import torch, torchvision
before = set(sys.modules)
started = []
events = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork")
sys.addaudithook(lambda event, _: started.append(event) if event in events else None)
{code}
assert not started, started
loaded = {{name.partition(".")[0] for name in set(sys.modules) - before}}
assert not loaded & {HEAVY!r}, loaded & {HEAVY!r}
kernels = {{name for name in sys.modules if name.startswith("fastfss.kernels.")}}
assert kernels <= {{"fastfss.kernels._launch"}}, "Triton is loaded when a call needs it"
"""
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (done.stdout, done.stderr) == ("", "")


def test_import_does_not_load_torchvision():
    """It doubles the time of importing torch; an encoder that needs it loads it."""
    program = "import sys, fastfss; assert 'torchvision' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
