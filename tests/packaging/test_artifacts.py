"""The sdist and the wheels: what is in them, and that each works in a clean environment."""

from __future__ import annotations

import json
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.packaging.clean import ROOT, CleanEnvironment, run

for tool in ("build", "setuptools", "pybind11"):
    pytest.importorskip(tool, reason="not installed: pip install fastfss[dev]")
pytestmark = pytest.mark.slow

SMOKE = Path(__file__).parent / "smoke.py"
MEGABYTE = 1 << 20


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "-o", str(folder), cwd=ROOT)
    (archive,) = folder.iterdir()
    return archive


@pytest.fixture(scope="module")
def sources(sdist, tmp_path_factory) -> Path:
    """The unpacked sdist."""
    folder = tmp_path_factory.mktemp("sources")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    return next(folder.iterdir())


def build_wheel(sources: Path, folder: Path, mode: str) -> Path:
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    run(*command, "-w", str(folder), str(sources), cwd=folder, FASTFSS_BUILD=mode)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(sources, tmp_path_factory) -> Path:
    return build_wheel(sources, tmp_path_factory.mktemp("wheel"), "cpu")


@pytest.fixture(scope="module")
def python_wheel(sources, tmp_path_factory) -> Path:
    return build_wheel(sources, tmp_path_factory.mktemp("python_wheel"), "python")


def installed(wheel: Path, folder: Path) -> CleanEnvironment:
    clean = CleanEnvironment(folder / "venv")
    clean.pip_install(str(wheel))
    return clean


def test_sdist_holds_all_that_a_build_and_the_tests_need(sources):
    for name in (
        "CMakeLists.txt",
        "setup.py",
        "pyproject.toml",
        "mkdocs.yml",
        "LICENSE",
        "README.md",
    ):
        assert (sources / name).is_file(), name
    for folder in ("csrc", "fastfss", "tests"):
        wanted = {p.relative_to(ROOT) for p in (ROOT / folder).rglob("*") if p.is_file()}
        wanted = {p for p in wanted if "__pycache__" not in p.parts and p.suffix != ".so"}
        missing = sorted(str(p) for p in wanted if not (sources / p).is_file())
        assert not missing


def test_sdist_and_wheel_hold_the_kernels_as_files(sources, python_wheel):
    """In a checkout fastfss/kernels is a link to kernels/."""
    wanted = {path.name for path in (ROOT / "fastfss" / "kernels").glob("*.py")}
    assert wanted
    assert not (sources / "fastfss" / "kernels").is_symlink()
    assert {path.name for path in (sources / "fastfss" / "kernels").glob("*.py")} == wanted
    names = zipfile.ZipFile(python_wheel).namelist()
    assert {Path(n).name for n in names if n.startswith("fastfss/kernels/")} == wanted


def test_sdist_holds_nothing_built(sources):
    assert not [path for path in sources.rglob("*") if path.suffix in (".so", ".o", ".pyc")]


def test_wheel_holds_the_package_alone(wheel):
    folders = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert folders == {"fastfss", "-".join(wheel.name.split("-")[:2]) + ".dist-info"}


def test_wheel_holds_the_native_module_types_and_licence(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert len([name for name in names if name.startswith("fastfss/_native.")]) == 1
    assert "fastfss/py.typed" in names
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    suffixes = {Path(name).suffix for name in names if name.startswith("fastfss/")}
    assert not suffixes & {".cpp", ".h", ".cu"}


def test_wheel_is_under_10_megabytes(wheel):
    assert wheel.stat().st_size < 10 * MEGABYTE


def test_wheel_works_in_a_clean_environment(wheel, tmp_path):
    clean = installed(wheel, tmp_path)
    assert "native: C++ on the CPU" in clean.run(str(SMOKE), "native")
    program = clean.folder / "bin" / "fastfss"
    backends = json.loads(run(str(program), "env", "--json", cwd=tmp_path))["backends"]
    assert next(backend for backend in backends if backend["name"] == "native")["on"]


def test_wheel_without_native_code_serves_every_platform_and_works(python_wheel, tmp_path):
    assert python_wheel.name.endswith("-py3-none-any.whl")
    assert not [n for n in zipfile.ZipFile(python_wheel).namelist() if n.endswith(".so")]
    clean = installed(python_wheel, tmp_path)
    assert "FASTFSS_BUILD=python" in clean.run(str(SMOKE), "reference")
