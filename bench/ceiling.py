"""What the machine can do at most: the floor under a benchmark's time."""

from __future__ import annotations

from collections.abc import Callable

import torch

from fastfss.ops import _native_call

# Enough to take tens of milliseconds.
MULTIPLY_ADDS = 4_000_000_000


def multiply_adds(dtype: torch.dtype) -> Callable[[], None]:
    """A function of `2 * MULTIPLY_ADDS` FLOP in registers, to be timed with the others."""
    assert _native_call.module is not None
    core = _native_call.module

    def run() -> None:
        core.probe_multiply_adds(MULTIPLY_ADDS, dtype == torch.bfloat16)

    return run


def floor(flop: float, seconds_of_ceiling: float) -> float:
    """Seconds that `flop` take at the rate that `multiply_adds` reached."""
    return flop / (2 * MULTIPLY_ADDS) * seconds_of_ceiling
