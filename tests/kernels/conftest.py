"""Where the kernels' tests run: on a GPU, or in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

from fastfss.kernels._launch import interpreted


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what runs kernels where test_interpreter.py starts it again."""
    runs_kernels = "device" in getattr(item, "fixturenames", ())
    if not runs_kernels or item.get_closest_marker("gpu") is not None:
        return
    pytest.importorskip("triton", reason="not installed: pip install triton")
    if not (interpreted() or torch.cuda.is_available()):
        pytest.skip("needs TRITON_INTERPRET=1 or a GPU; test_interpreter.py runs it with the first")


@pytest.fixture
def device(poisoned_memory: None) -> str:
    """Of the tests that run kernels."""
    return "cpu" if interpreted() else "cuda"


@pytest.fixture(params=[torch.float32, torch.float16, torch.bfloat16], ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """What the kernels take."""
    # Triton 3.8's interpreter multiplies the bits of bfloat16 as if they were integers in tl.dot.
    if request.param == torch.bfloat16 and interpreted():
        pytest.skip("tl.dot on bfloat16 is wrong in Triton's interpreter")
    wanted: torch.dtype = request.param
    return wanted
