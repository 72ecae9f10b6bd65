"""Drives CMake for the native core; metadata are in pyproject.toml, sources in CMakeLists.txt.

FASTFSS_BUILD chooses what is built: "auto" (CPU; CUDA too where nvcc and a GPU, or nvcc and
FASTFSS_CUDA_ARCHS, are given), "cpu", "cuda" or "python" (no native code at all). What was asked
for and fails is an error.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

MODES = ("auto", "cpu", "cuda", "python")
ROOT = Path(__file__).parent.resolve()


def find_nvcc() -> str | None:
    """The path of nvcc: $CUDACXX, $CUDA_HOME/bin, PATH, /usr/local/cuda/bin."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    candidates = [os.environ.get("CUDACXX"), *(f"{h}/bin/nvcc" for h in homes if h), "nvcc"]
    return next((found for c in candidates if c and (found := shutil.which(c))), None)


def wants_cuda(mode: str) -> bool:
    """Whether this build has CUDA kernels; exits with the reason where an asked-for one cannot."""
    asked = mode == "cuda" or (mode == "auto" and bool(os.environ.get("FASTFSS_CUDA_ARCHS")))
    if asked and find_nvcc() is None:
        sys.exit(
            "fastfss: a CUDA build was asked for (FASTFSS_BUILD=cuda or FASTFSS_CUDA_ARCHS), but "
            "nvcc was not found; install the CUDA toolkit or set CUDA_HOME, or use "
            "FASTFSS_BUILD=cpu"
        )
    return asked or (mode == "auto" and find_nvcc() is not None and has_gpu())


def has_gpu() -> bool:
    """Whether an NVIDIA driver answers on this machine."""
    smi = shutil.which("nvidia-smi")
    return smi is not None and subprocess.run([smi, "-L"], capture_output=True).returncode == 0


class CMakeBuild(build_ext):
    """Configures and builds CMakeLists.txt into the place where setuptools expects the module."""

    def build_extension(self, ext: Extension) -> None:
        """Run CMake; a failure stops the installation."""
        import pybind11

        output = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        configure = [
            *("cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja"),
            f"-DFASTFSS_OUTPUT_DIR={output}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        ]
        if wants_cuda(MODE):
            archs = os.environ.get("FASTFSS_CUDA_ARCHS")
            if archs is None and not has_gpu():
                sys.exit(
                    "fastfss: FASTFSS_BUILD=cuda on a machine without a GPU needs "
                    'FASTFSS_CUDA_ARCHS, for example FASTFSS_CUDA_ARCHS="80;90"'
                )
            configure += ["-DFASTFSS_CUDA=ON", f"-DFASTFSS_CUDA_ARCHS={archs or 'native'}"]
            configure.append(f"-DCMAKE_CUDA_COMPILER={find_nvcc()}")
        for command in (configure, ["cmake", "--build", str(build)]):
            try:
                subprocess.run(command, check=True)
            except (FileNotFoundError, subprocess.CalledProcessError) as error:
                sys.exit(
                    f"fastfss: building the native core failed ({error}); the compiler's own "
                    "message stands above. It needs a C++20 compiler with OpenMP (g++ >= 11 or "
                    "clang >= 14); FASTFSS_BUILD=python installs without native code, slower but "
                    "complete."
                )


MODE = os.environ.get("FASTFSS_BUILD", "auto")
if MODE not in MODES:
    sys.exit(f"fastfss: FASTFSS_BUILD={MODE!r}: expected one of {', '.join(MODES)}")
setup(
    ext_modules=[] if MODE == "python" else [Extension("fastfss._native", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
