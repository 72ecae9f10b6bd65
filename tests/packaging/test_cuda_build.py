"""The CUDA sources compile, and the module imports with or without a driver."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch

from tests.packaging.clean import ROOT, run

for tool in ("setuptools", "pybind11"):
    pytest.importorskip(tool, reason="not installed: pip install fastfss[dev]")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which("nvcc") or Path("/usr/local/cuda/bin/nvcc").exists()),
        reason="needs nvcc",
    ),
]
PRINT_ENV = """
import json
from fastfss.environment import environment
print(json.dumps(environment().to_dict()))
"""


@pytest.fixture(scope="module")
def build(tmp_path_factory) -> Path:
    """`lib` with the package, `temp` with what CMake left, built for sm_80 and sm_90."""
    folder = tmp_path_factory.mktemp("cuda")
    command = [sys.executable, "setup.py", "build", f"--build-base={folder}"]
    command += [f"--build-lib={folder / 'lib'}", f"--build-temp={folder / 'temp'}"]
    run(*command, cwd=ROOT, FASTFSS_BUILD="cuda", FASTFSS_CUDA_ARCHS="80;90")
    return folder


def test_every_cuda_source_is_compiled_for_the_architectures_asked_for(build):
    commands = json.loads((build / "temp" / "compile_commands.json").read_text())
    cuda = {Path(c["file"]).name: c["command"] for c in commands if c["file"].endswith(".cu")}
    assert set(cuda) == {path.name for path in (ROOT / "csrc" / "cuda").glob("*.cu")}
    for command in cuda.values():
        assert set(re.findall(r"\bsm_(\d+)", command)) == {"80", "90"}


def kernels(build: Path, flag: str) -> dict[str, str]:
    """What cuobjdump says of every kernel, by "<sm> <kernel>"."""
    triton = importlib.util.find_spec("triton")
    if triton is None or triton.origin is None:
        pytest.skip("needs triton, which carries cuobjdump")
    tool = Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not tool.exists():
        pytest.skip("this triton carries no cuobjdump")
    found = {}
    for one in build.glob("temp/**/*.cu.o"):
        architecture = ""
        text = run(str(tool), flag, str(one), cwd=build)
        for part in re.split(r"(?m)^(?=\s*Function|\s*arch = |Fatbin)", text):
            if match := re.search(r"arch = (sm_\d+)", part):
                architecture = match[1]
            if match := re.match(r"\s*Function\s*:?\s*(\w+)", part):
                found[f"{architecture} {match[1]}"] = part
    assert found
    return found


def test_no_kernel_spills_registers(build):
    for name, code in kernels(build, "-sass").items():
        assert not re.search(r"\b(LDL|STL)\b", code), name


# Instances for maps that allow it: mangled, "Li8E" and "Li4E" are the elements of 16 bytes.
WIDE = r"(pool_rows|pool_columns|match_columns|match_rows)I(f|\w*?F16E)Li(8|4)E"


def test_maps_are_read_16_bytes_at_a_time_and_products_use_tensor_cores(build):
    code = kernels(build, "-sass")
    wide = {name: text for name, text in code.items() if re.search(WIDE, name)}
    # Architectures, dtypes; for 1, 2, 4 and 8 prototypes or 1, 2 and 4 masks, pool_rows twice.
    assert len(wide) == 2 * 3 * (4 + 4 + 3 + 2 * 3)
    for name, text in wide.items():
        assert "LDG.E.128" in text, name
    products = {name: text for name, text in code.items() if "correlateI" in name}
    assert len(products) == 4
    for name, text in products.items():
        assert "LDGSTS.E.BYPASS.128" in text, name
        assert "HMMA.16816.F32" in text, name
    # Architectures, dtypes; for 3 x 3 and 5 x 5 windows: four channels twice, and eight; rows that
    # are read in whole words, and others.
    products = {name: text for name, text in code.items() if "convolveI" in name}
    assert len(products) == 2 * 2 * 2 * 3 * 2
    for name, text in products.items():
        assert "HMMA.16816.F32" in text and "LDS.64" in text, name
        assert "LDGSTS.E.BYPASS.128" in text, name


def test_module_needs_neither_driver_nor_cuda_libraries_to_load(build):
    if (readelf := shutil.which("readelf")) is None:
        pytest.skip("needs readelf (binutils)")
    (module,) = (build / "lib" / "fastfss").glob("_native.*")
    needed = re.findall(r"NEEDED.*\[(.+)\]", run(readelf, "-d", str(module), cwd=build))
    assert needed
    assert not [name for name in needed if "cuda" in name]


def test_environment_tells_the_state_of_cuda_in_the_runtimes_words(build):
    library = str(build / "lib")
    found = json.loads(run(sys.executable, "-c", PRINT_ENV, cwd=build, PYTHONPATH=library))
    cuda = next(backend for backend in found["backends"] if backend["name"] == "cuda")
    assert "80,90" in cuda["detail"]
    assert cuda["on"] == torch.cuda.is_available()
    if not cuda["on"]:
        assert re.search(r"CUDA driver|no CUDA-capable device|sees no GPU", cuda["detail"])
