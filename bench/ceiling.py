"""What the machine can do at most: the floor under a benchmark's time."""

from __future__ import annotations

from collections.abc import Callable

import torch

from bench.compare import Comparison
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


def against_floor(
    measured: Comparison, flop: float, *, published: str = "published"
) -> dict[str, float]:
    """What a row says of "ours" beside its times; `multiply_adds` was timed in the same rounds."""
    ours = measured.median("ours")
    least = floor(flop, measured.median("multiply-adds"))
    return {
        "ratio": round(measured.ratio(published, "ours"), 2),
        "gflops": round(flop / ours / 1e9),
        "floor_ms": round(least * 1e3, 2),
        "of_floor": round(ours / least, 2),
    }
