"""The sdist and the wheels: what is in them, and that each works in a clean environment."""

from __future__ import annotations

import json
import os
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.packaging.clean import ROOT, CleanEnvironment, run
from tests.packaging.wheel import LIMIT, loaded, package_files, problems, size

for tool in ("build", "setuptools", "pybind11"):
    pytest.importorskip(tool, reason="not installed: pip install fastfss[dev]")

SMOKE = Path(__file__).parent / "smoke.py"


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
def wheel(request, tmp_path_factory) -> Path:
    """With native code: the file FASTFSS_WHEEL (one that .ci/wheels made), else built here."""
    if made := os.environ.get("FASTFSS_WHEEL"):
        return Path(made).absolute()
    sources = request.getfixturevalue("sources")
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


def test_sdist_holds_the_kernels_as_files(sources):
    """In a checkout fastfss/kernels is a link to kernels/."""
    assert not (sources / "fastfss" / "kernels").is_symlink()
    assert package_files(sources) == package_files()


def test_sdist_holds_nothing_built(sources):
    assert not [path for path in sources.rglob("*") if path.suffix in (".so", ".o", ".pyc")]


def test_wheel_without_native_code_holds_the_package_and_nothing_else(python_wheel):
    assert python_wheel.name.endswith("-py3-none-any.whl")
    assert problems(python_wheel) == []
    names = zipfile.ZipFile(python_wheel).namelist()
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    assert {"fastfss/py.typed", "fastfss/kernels/dense_match.py"} < set(names)


def test_what_is_wrong_with_a_wheel_is_listed(python_wheel, tmp_path):
    wrong = tmp_path / python_wheel.name
    with zipfile.ZipFile(python_wheel) as made, zipfile.ZipFile(wrong, "w") as archive:
        for entry in made.infolist():
            if entry.filename != "fastfss/py.typed":
                archive.writestr(entry, made.read(entry))
        archive.writestr("tests/test_left.py", "")
        archive.writestr("fastfss/_native.abi3.so", b"\0/home/someone/fastfss/csrc/module.cpp\0")
        archive.writestr("fastfss/large.bin", os.urandom(LIMIT))
    found = problems(wrong)
    assert found[:-1] == [
        "missing: fastfss/py.typed",
        "should not be there: fastfss/large.bin",
        "should not be there: tests/test_left.py",
        "native modules under this tag: ['fastfss/_native.abi3.so']",
        "fastfss/_native.abi3.so: path of the build machine: /home/someone/fastfss/csrc/module.cpp",
    ]
    assert found[-1].endswith(f"bytes without weights: expected less than {LIMIT}")


def test_a_wheel_s_weights_are_counted_apart(python_wheel):
    bytes_of = size(python_wheel)
    assert bytes_of.native == 0
    default = ROOT / "fastfss" / "weights" / "files" / "default.safetensors"
    assert 0 < bytes_of.weights <= default.stat().st_size
    assert bytes_of.wheel - bytes_of.weights > 0


@pytest.mark.slow
def test_wheel_holds_the_package_and_its_native_module_and_nothing_else(wheel):
    assert problems(wheel) == []
    assert "portable" in loaded(wheel).split(",")


@pytest.mark.slow
def test_wheel_works_in_a_clean_environment(wheel, tmp_path):
    clean = installed(wheel, tmp_path)
    assert "native: C++ on the CPU" in clean.run(str(SMOKE), "native")
    program = clean.folder / "bin" / "fastfss"
    backends = json.loads(run(str(program), "env", "--json", cwd=tmp_path))["backends"]
    assert next(backend for backend in backends if backend["name"] == "native")["on"]


@pytest.mark.slow
def test_commands_of_an_installed_wheel_find_its_weights(wheel, tmp_path):
    """`fastfss demo` runs `fastfss predict` with the default model."""
    pytest.importorskip("skimage", reason="the photograph of fastfss demo")
    clean = installed(wheel, tmp_path)
    said = run(str(clean.folder / "bin" / "fastfss"), "demo", cwd=tmp_path)
    assert "fastfss predict" in said
    assert list((tmp_path / "demo").rglob("*.png"))


@pytest.mark.slow
def test_wheel_without_native_code_works(python_wheel, tmp_path):
    clean = installed(python_wheel, tmp_path)
    assert "FASTFSS_BUILD=python" in clean.run(str(SMOKE), "reference")
