"""Where the CUDA kernels' tests run: on a GPU, and compiled for the CPU by emulator.h."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest
import torch

from fastfss.ops import _cuda_call
from tests.packaging.clean import ROOT


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """csrc/cuda's kernels as a module for the CPU."""
    pybind11 = pytest.importorskip("pybind11", reason="not installed: pip install fastfss[dev]")
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++: the emulator uses its _Float16")
    folder = tmp_path_factory.mktemp("emulated_cuda")
    includes = [ROOT / "tests" / "cuda", ROOT / "csrc" / "include", pybind11.get_include()]
    includes.append(sysconfig.get_path("include"))
    options = ["-std=c++20", "-O1", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
    options += ["-fvisibility=hidden", "-DFASTFSS_CUDA_EMULATED", *(f"-I{one}" for one in includes)]
    kernels = sorted(set((ROOT / "csrc" / "cuda").glob("*.cu")) - {ROOT / "csrc/cuda/device.cu"})
    module = folder / f"emulated_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    running, objects = [], []
    for source in [*kernels, ROOT / "tests" / "cuda" / "module.cpp"]:
        objects.append(folder / f"{source.stem}.o")
        command = [compiler, *options, "-x", "c++", "-c", source, "-o", objects[-1]]
        running.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
    for one in running:
        _, errors = one.communicate()
        assert one.returncode == 0, errors
    subprocess.run([compiler, "-shared", *objects, "-o", module], check=True)
    return _imported(module)


def _imported(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("emulated_cuda", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=["emulated", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, poisoned_memory: None
) -> str:
    """The device of the tests' tensors, on which backend "cuda" serves."""
    if request.param == "gpu":
        if _cuda_call.module is None or _cuda_call.module.cuda_architectures is None:
            pytest.fail("this build has no CUDA kernels: FASTFSS_BUILD=cuda pip install -e .")
        return "cuda"
    module = request.getfixturevalue("emulated")
    module.cuda_architectures = "80"
    monkeypatch.setattr(_cuda_call, "module", module)
    monkeypatch.setattr(_cuda_call, "why_not_device", lambda device: None)
    return "cpu"


@pytest.fixture(params=[torch.float32, torch.float16, torch.bfloat16], ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """What the kernels take."""
    wanted: torch.dtype = request.param
    return wanted
