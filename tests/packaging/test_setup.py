"""What setup.py decides to build, and what it says when it cannot.

setup.py runs for real, with a PATH that holds stand-ins for cmake, the compiler, nvcc and
nvidia-smi; the stand-in for cmake writes down how it was called.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.packaging.clean import ROOT, CleanEnvironment

pytest.importorskip("setuptools", reason="not installed: pip install fastfss[dev]")
pytest.importorskip("pybind11", reason="not installed: pip install fastfss[dev]")


@dataclass(frozen=True)
class Machine:
    """A machine with the programs that a test gives it, and no others."""

    folder: Path

    def has(self, *names: str, status: int = 0) -> None:
        for name in names:
            path = self.folder / "bin" / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(f'#!/bin/sh\necho "$@" >> "{self.folder}/{name}.log"\nexit {status}\n')
            path.chmod(0o755)

    def install(
        self, python: str | Path = sys.executable, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run the part of an installation that builds native code."""
        # CUDA_HOME keeps a toolkit of the real machine out of sight.
        environ = {"PATH": str(self.folder / "bin"), "CUDA_HOME": str(self.folder), **variables}
        command = [str(python), "setup.py", "build_ext"]
        command += ["--build-lib", str(self.folder / "lib")]
        command += ["--build-temp", str(self.folder / "temp")]
        environ = {name: value for name, value in environ.items() if value}
        return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)

    def cmake_calls(self) -> list[str]:
        log = self.folder / "cmake.log"
        return log.read_text().splitlines() if log.exists() else []


@pytest.fixture
def machine(tmp_path) -> Machine:
    """With a C++ compiler and the build tools, without CUDA."""
    machine = Machine(tmp_path)
    machine.has("c++", "cmake", "ninja")
    return machine


def refusal(run: subprocess.CompletedProcess[str]) -> str:
    """The error text of an installation that was refused."""
    assert run.returncode != 0, run.stdout
    assert "Traceback" not in run.stderr
    return run.stderr


def test_auto_without_nvcc_builds_for_the_cpu(machine):
    run = machine.install()
    assert run.returncode == 0, run.stderr
    configure, build = machine.cmake_calls()
    assert "-DFASTFSS_CUDA=OFF" in configure
    assert f"-DPython_EXECUTABLE={sys.executable}" in configure
    assert build.startswith("--build ")


@pytest.mark.parametrize("driver", [None, 9], ids=["no nvidia-smi", "nvidia-smi fails"])
def test_auto_with_nvcc_but_without_a_gpu_builds_for_the_cpu(machine, driver):
    machine.has("nvcc")
    if driver is not None:
        machine.has("nvidia-smi", status=driver)
    assert machine.install(CUDA_HOME="").returncode == 0
    assert "-DFASTFSS_CUDA=OFF" in machine.cmake_calls()[0]


def test_auto_with_nvcc_and_a_gpu_builds_for_that_gpu(machine):
    machine.has("nvcc", "nvidia-smi")
    assert machine.install(CUDA_HOME="").returncode == 0
    configure = machine.cmake_calls()[0]
    assert "-DFASTFSS_CUDA=ON" in configure
    assert "-DFASTFSS_CUDA_ARCHS=native" in configure
    assert f"-DCMAKE_CUDA_COMPILER={machine.folder}/bin/nvcc" in configure


@pytest.mark.parametrize("written", ["80;90", "80,90", "80 90", " 80; 90;"])
def test_architectures_ask_for_cuda_without_a_gpu(machine, written):
    machine.has("nvcc")
    run = machine.install(CUDA_HOME="", FASTFSS_CUDA_ARCHS=written)
    assert run.returncode == 0, run.stderr
    assert "-DFASTFSS_CUDA_ARCHS=80;90" in machine.cmake_calls()[0]


def test_nvcc_of_cuda_home_is_taken(machine):
    (machine.folder / "toolkit").mkdir()
    Machine(machine.folder / "toolkit").has("nvcc")
    home = str(machine.folder / "toolkit")
    assert machine.install(CUDA_HOME=home, FASTFSS_CUDA_ARCHS="90").returncode == 0
    assert f"-DCMAKE_CUDA_COMPILER={home}/bin/nvcc" in machine.cmake_calls()[0]


def test_cpu_is_built_without_cuda_whatever_else_is_there(machine):
    machine.has("nvcc", "nvidia-smi")
    run = machine.install(CUDA_HOME="", FASTFSS_BUILD="cpu", FASTFSS_CUDA_ARCHS="80;90")
    assert run.returncode == 0, run.stderr
    assert "-DFASTFSS_CUDA=OFF" in machine.cmake_calls()[0]


def test_python_needs_neither_compiler_nor_cmake(tmp_path):
    machine = Machine(tmp_path)
    run = machine.install(FASTFSS_BUILD="python")
    assert run.returncode == 0, run.stderr
    assert not machine.cmake_calls()


@pytest.mark.parametrize(
    "variables",
    [{"FASTFSS_BUILD": "cuda"}, {"FASTFSS_CUDA_ARCHS": "80;90"}],
    ids=["FASTFSS_BUILD=cuda", "FASTFSS_CUDA_ARCHS"],
)
def test_cuda_that_was_asked_for_without_nvcc_is_an_error(machine, variables):
    error = refusal(machine.install(**variables))
    assert "nvcc was not found" in error
    assert "CUDA_HOME" in error
    assert not machine.cmake_calls()


def test_cuda_without_a_gpu_needs_architectures(machine):
    machine.has("nvcc")
    error = refusal(machine.install(CUDA_HOME="", FASTFSS_BUILD="cuda"))
    assert "FASTFSS_CUDA_ARCHS" in error
    assert not machine.cmake_calls()


@pytest.mark.parametrize("written", ["ampere", "sm_80", "8.0", "80;;x"])
def test_unknown_architecture_is_an_error_that_repeats_it(machine, written):
    machine.has("nvcc")
    error = refusal(machine.install(CUDA_HOME="", FASTFSS_CUDA_ARCHS=written))
    assert "FASTFSS_CUDA_ARCHS" in error
    assert written.split(";")[-1] in error


def test_unknown_mode_is_an_error_that_lists_the_modes(machine):
    error = refusal(machine.install(FASTFSS_BUILD="gpu"))
    assert "FASTFSS_BUILD='gpu': expected one of auto, cpu, cuda, python" in error


@pytest.mark.parametrize("mode", ["auto", "cpu"])
def test_missing_compiler_is_an_error_that_names_the_way_without_one(tmp_path, mode):
    machine = Machine(tmp_path)
    machine.has("cmake", "ninja")
    error = refusal(machine.install(FASTFSS_BUILD=mode))
    assert "no C++ compiler was found" in error
    assert "g++" in error
    assert "FASTFSS_BUILD=python" in error
    assert not machine.cmake_calls()


def test_compiler_that_cxx_names_but_is_not_there_is_an_error(machine):
    error = refusal(machine.install(CXX="no-such-compiler -O3"))
    assert "CXX=no-such-compiler does not exist" in error


def test_compiler_of_cxx_counts_with_its_arguments(machine):
    machine.has("my-compiler")
    (machine.folder / "bin" / "c++").unlink()
    assert machine.install(CXX="my-compiler -m64").returncode == 0


@pytest.mark.parametrize("tool", ["cmake", "ninja"])
def test_missing_build_tool_is_named(machine, tool):
    (machine.folder / "bin" / tool).unlink()
    # Tools beside the interpreter count, and this one may have them there.
    python = CleanEnvironment(machine.folder / "venv").python
    error = refusal(machine.install(python))
    assert f"{tool} was not found" in error
    assert "pip install" in error


def test_step_that_fails_stops_the_installation_and_is_named(machine):
    machine.has("cmake", status=3)
    error = refusal(machine.install())
    assert "configuring the native core failed (exit status 3)" in error
    assert "FASTFSS_BUILD=python" in error
    assert len(machine.cmake_calls()) == 1


def test_cuda_build_that_fails_is_no_cpu_build(machine):
    machine.has("nvcc")
    machine.has("cmake", status=3)
    error = refusal(machine.install(CUDA_HOME="", FASTFSS_CUDA_ARCHS="90"))
    assert "CUDA toolkit" in error
    assert len(machine.cmake_calls()) == 1


def test_broken_compiler_is_told_by_cmake_and_stops_the_installation(machine):
    """The real cmake and ninja; the compiler fails at its first use."""
    for tool in ("cmake", "ninja"):
        (machine.folder / "bin" / tool).unlink()
    machine.has("broken-c++", status=1)
    beside = str(Path(sys.executable).parent)
    path = os.pathsep.join([str(machine.folder / "bin"), beside, os.environ["PATH"]])
    run = machine.install(PATH=path, CXX=str(machine.folder / "bin" / "broken-c++"))
    error = refusal(run)
    assert "broken-c++" in error
    assert "configuring the native core failed" in error
