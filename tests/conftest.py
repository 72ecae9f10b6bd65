"""What all tests share: the marker `gpu`, memory that shows what nobody wrote."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator

import pytest
import torch

_cache = ""


def pytest_configure() -> None:
    """A cache of the tests' own; Ctrl-C reaches the programs they start, also in the background."""
    global _cache
    _cache = tempfile.mkdtemp(prefix="fastfss-tests-")
    os.environ["FASTFSS_CACHE"] = _cache
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # which they would inherit
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_unconfigure() -> None:
    """The cache goes."""
    shutil.rmtree(_cache, ignore_errors=True)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip `gpu` tests where there is no GPU; fail them where one is required."""
    if item.get_closest_marker("gpu") is None or torch.cuda.is_available():
        return
    if os.environ.get("FASTFSS_REQUIRE_GPU") == "1":
        pytest.fail("FASTFSS_REQUIRE_GPU=1, but torch sees no GPU", pytrace=False)
    pytest.skip("needs an NVIDIA GPU")


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Memory that torch hands out uninitialised holds NaN: an element nobody writes shows."""
    # Warnings alone: a GPU's references use operations without a deterministic form.
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
