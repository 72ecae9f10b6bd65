"""The markers `gpu` and `slow` do what pyproject.toml says of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TESTS = """
import pytest

@pytest.mark.gpu
def test_on_the_gpu():
    pass

@pytest.mark.slow
def test_that_takes_long():
    pass

def test_plain():
    pass
"""


def run_pytest(folder: Path, *arguments: str, **variables: str) -> str:
    """The summary of pytest over TESTS, with this project's conftest.py and settings, no GPU."""
    (folder / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    (folder / "test_three.py").write_text(TESTS)
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "FASTFSS_"))}
    command = [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), *arguments]
    command += [f"--rootdir={folder}", "-p", "no:cacheprovider", str(folder)]
    environ |= {"CUDA_VISIBLE_DEVICES": "", **variables}
    run = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True)
    return run.stdout


def test_gpu_tests_are_skipped_with_a_reason_without_a_gpu(tmp_path):
    output = run_pytest(tmp_path)
    assert "1 passed, 1 skipped, 1 deselected" in output
    assert "needs an NVIDIA GPU" in output


def test_gpu_tests_fail_without_a_gpu_where_one_is_required(tmp_path):
    output = run_pytest(tmp_path, FASTFSS_REQUIRE_GPU="1")
    assert "1 passed, 1 deselected, 1 error" in output
    assert "FASTFSS_REQUIRE_GPU=1, but torch sees no GPU" in output


@pytest.mark.parametrize(
    ("arguments", "variables", "summary"),
    [
        (["-m", "slow"], {}, "1 passed, 2 deselected"),
        (["-m", ""], {}, "2 passed, 1 skipped"),
        ([], {"PYTEST_ADDOPTS": "-m ''"}, "2 passed, 1 skipped"),
    ],
    ids=["slow alone", "everything", "everything, as CI asks"],
)
def test_slow_tests_run_where_asked_for(tmp_path, arguments, variables, summary):
    assert summary in run_pytest(tmp_path, *arguments, **variables)
