"""Where the kernels' tests run: on a GPU, or in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

from fastfss.kernels._launch import interpreted


@pytest.fixture
def device(poisoned_memory: None) -> str:
    """Of the tests that run kernels; they skip where test_interpreter.py starts them again."""
    pytest.importorskip("triton", reason="not installed: pip install triton")
    if interpreted():
        return "cpu"
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU or TRITON_INTERPRET=1; test_interpreter.py runs it with that")
    return "cuda"


@pytest.fixture(params=[torch.float32, torch.float16, torch.bfloat16], ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """What the kernels take."""
    # Triton 3.8's interpreter multiplies the bits of bfloat16 as if they were integers in tl.dot.
    if request.param == torch.bfloat16 and interpreted():
        pytest.skip("tl.dot on bfloat16 is wrong in Triton's interpreter")
    wanted: torch.dtype = request.param
    return wanted
