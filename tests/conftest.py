"""What all tests share: the marker `gpu`."""

from __future__ import annotations

import os

import pytest
import torch


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip `gpu` tests where there is no GPU; fail them where one is required."""
    if item.get_closest_marker("gpu") is None or torch.cuda.is_available():
        return
    if os.environ.get("FASTFSS_REQUIRE_GPU") == "1":
        pytest.fail("FASTFSS_REQUIRE_GPU=1, but torch sees no GPU", pytrace=False)
    pytest.skip("needs an NVIDIA GPU")
