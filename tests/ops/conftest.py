"""Fixtures for the operations' tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fastfss.ops import _native_call


@pytest.fixture(params=["portable", "avx2", "avx512", "avx512_bf16", "amx"])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every instruction set of this build that the CPU runs, one after the other."""
    core = _native_call.module
    if core is None:
        pytest.skip("built without native code")
    wanted = getattr(core.Isa, request.param)
    if int(wanted) > int(core.best_isa()):
        pytest.skip(f"this CPU has no {request.param}")
    core.set_isa(wanted)
    yield request.param
    core.set_isa(core.best_isa())
