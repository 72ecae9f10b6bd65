"""Drives CMake for the native core; metadata are in pyproject.toml, sources in CMakeLists.txt.

FASTFSS_BUILD chooses what is built: "auto" (CPU; CUDA too where nvcc and a GPU, or nvcc and
FASTFSS_CUDA_ARCHS, are given), "cpu", "cuda" or "python" (no native code at all). What was asked
for and fails is an error.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NoReturn

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

MODES = ("auto", "cpu", "cuda", "python")
ROOT = Path(__file__).parent.resolve()
WITHOUT = "FASTFSS_BUILD=python installs without native code: slower, but every method works."
TOOLS = "without build isolation, first: pip install cmake ninja pybind11"


def fail(message: str) -> NoReturn:
    """Stop the installation; pip shows the message at the end of its output."""
    sys.exit(f"fastfss: {message}")


def build_tool(name: str) -> str:
    """The path of cmake or ninja; build isolation puts both on PATH."""
    found = shutil.which(name) or shutil.which(name, path=sysconfig.get_path("scripts"))
    if found is None:
        fail(f"{name} was not found; {TOOLS}")
    return found


def check_compiler() -> None:
    """Stop with a reason where CMake would find no C++ compiler ($CXX, else the usual names)."""
    asked = shlex.split(os.environ.get("CXX", ""))[:1]
    names = asked or ["c++", "g++", "clang++"]
    if not any(shutil.which(name) for name in names):
        where = f"CXX={asked[0]} does not exist" if asked else f"none of {', '.join(names)} on PATH"
        fail(
            f"no C++ compiler was found ({where}). The native core needs one with C++20 and OpenMP "
            f"(g++ >= 11, for example apt install g++, or clang++ >= 14). {WITHOUT}"
        )


def find_nvcc() -> str | None:
    """The path of nvcc: $CUDACXX or $CUDA_HOME where set, else PATH, /usr/local/cuda."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if compiler := os.environ.get("CUDACXX"):
        candidates = [compiler]
    elif home:
        candidates = [f"{home}/bin/nvcc"]
    else:
        candidates = ["nvcc", "/usr/local/cuda/bin/nvcc"]
    return next((found for name in candidates if (found := shutil.which(name))), None)


def has_gpu() -> bool:
    """Whether an NVIDIA driver answers on this machine."""
    smi = shutil.which("nvidia-smi")
    return smi is not None and subprocess.run([smi, "-L"], capture_output=True).returncode == 0


def cuda_options(mode: str) -> list[str]:
    """CMake's options for the CUDA kernels; stops where an asked-for build cannot be made."""
    # Separated by semicolons, commas or spaces; CMake wants semicolons.
    archs = ";".join(re.split(r"[;,\s]+", os.environ.get("FASTFSS_CUDA_ARCHS", "").strip(";, ")))
    if archs and not re.fullmatch(r"(native|all|all-major|\d+[af]?(-real|-virtual)?;?)+", archs):
        fail(f"FASTFSS_CUDA_ARCHS={archs!r}: expected GPU architectures such as 80;90")
    if mode == "cpu" or (mode == "auto" and not archs and not (find_nvcc() and has_gpu())):
        # Said, not left out: the build folder may remember another answer.
        return ["-DFASTFSS_CUDA=OFF"]
    if (nvcc := find_nvcc()) is None:
        fail(
            "a CUDA build was asked for (FASTFSS_BUILD=cuda or FASTFSS_CUDA_ARCHS), but nvcc was "
            "not found ($CUDACXX, $CUDA_HOME/bin, PATH, /usr/local/cuda/bin); install the CUDA "
            "toolkit or set CUDA_HOME, or use FASTFSS_BUILD=cpu"
        )
    if not archs and not has_gpu():
        fail(
            "FASTFSS_BUILD=cuda on a machine without a GPU needs FASTFSS_CUDA_ARCHS, for example "
            'FASTFSS_CUDA_ARCHS="80;90"'
        )
    return [
        "-DFASTFSS_CUDA=ON",
        f"-DFASTFSS_CUDA_ARCHS={archs or 'native'}",
        f"-DCMAKE_CUDA_COMPILER={nvcc}",
    ]


class CMakeBuild(build_ext):
    """Configures and builds CMakeLists.txt into the place where setuptools expects the module."""

    def build_extension(self, ext: Extension) -> None:
        """Run CMake; a failure stops the installation."""
        cuda = cuda_options(MODE)
        check_compiler()
        cmake, ninja = build_tool("cmake"), build_tool("ninja")
        try:
            import pybind11
        except ImportError:
            fail(f"pybind11 was not found; {TOOLS}")

        output = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        configure = [
            *(cmake, "-S", str(ROOT), "-B", str(build), "-G", "Ninja"),
            # The build folder outlives the isolated environment that it remembers ninja in.
            f"-DCMAKE_MAKE_PROGRAM={ninja}",
            f"-DFASTFSS_OUTPUT_DIR={output}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            *cuda,
        ]
        steps = {"configuring": configure, "compiling": [cmake, "--build", str(build)]}
        for step, command in steps.items():
            if (status := subprocess.run(command).returncode) != 0:
                fail(
                    f"{step} the native core failed (exit status {status}); the reason stands "
                    "above. It needs a C++20 compiler with OpenMP (g++ >= 11 or clang++ >= 14)"
                    f"{' and a CUDA toolkit that fits it' if '-DFASTFSS_CUDA=ON' in cuda else ''}. "
                    f"{WITHOUT}"
                )


MODE = os.environ.get("FASTFSS_BUILD", "auto")
if MODE not in MODES:
    fail(f"FASTFSS_BUILD={MODE!r}: expected one of {', '.join(MODES)}")
setup(
    ext_modules=[] if MODE == "python" else [Extension("fastfss._native", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
