"""The kernels in Triton's interpreter, on the CPU: this folder's tests in processes of their own.

TRITON_INTERPRET=1 must be set before triton is imported and changes what it does everywhere, so no
other test may share such a process.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FILES = sorted(path.name for path in HERE.glob("test_*.py"))
FILES = [name for name in FILES if name not in (Path(__file__).name, "test_compiled.py")]


def test_every_operation_has_its_tests():
    kernels = HERE.parent.parent / "fastfss" / "kernels"
    stems = {path.stem for path in kernels.glob("*.py") if not path.stem.startswith("_")}
    assert {f"test_{stem}.py" for stem in stems} <= set(FILES)


@pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="runs in the interpreter already")
@pytest.mark.parametrize("name", FILES)
def test_kernels_in_the_interpreter(name):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / name)]
    # The real GPU, where there is one, is not the interpreter's.
    environ = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    environ.pop("FASTFSS_REQUIRE_GPU", None)
    environ["PYTEST_XDIST_AUTO_NUM_WORKERS"] = "0"  # one file
    done = subprocess.run(
        command, env=environ, cwd=HERE.parent.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert re.search(r"\b[1-9]\d* passed", done.stdout), done.stdout
