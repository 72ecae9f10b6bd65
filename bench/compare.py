"""Interleaved measurement: A, B, C, A, B, C, ..., and the medians.

Other programs share the machine, so an absolute time says little. Functions that take turns meet
the same disturbances; the ratio of two of them, taken round by round, is what a benchmark reports.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from fastfss.ops import _native_call

Caches = Literal["cold", "warm"]

# Larger than the last-level cache of the machines that this runs on (32 MiB where it was written).
EVICTION_BYTES = 128 << 20
# Seconds: a longer call begins with nothing in the caches that would matter, so none precedes it.
WARMED = 1.0


@dataclass(frozen=True)
class Comparison:
    """What `compare` measured: seconds of every round, by name, in the order of the rounds."""

    rounds: Mapping[str, list[float]]

    def median(self, name: str) -> float:
        """Median seconds of one call of `name`."""
        return statistics.median(self.rounds[name])

    def ratio(self, slow: str, fast: str) -> float:
        """How many times longer `slow` takes than `fast`: the median of the rounds' ratios."""
        pairs = zip(self.rounds[slow], self.rounds[fast], strict=True)
        return statistics.median(a / b for a, b in pairs)

    def as_dict(self) -> dict[str, float]:
        """Medians in milliseconds, for pytest-benchmark's `extra_info`."""
        return {f"{name}_ms": round(self.median(name) * 1e3, 4) for name in self.rounds}

    def __str__(self) -> str:
        width = max(map(len, self.rounds))
        first = next(iter(self.rounds))
        count = len(self.rounds[first])
        lines = [f"{count} rounds"]
        for name in self.rounds:
            times = f"{self.median(name) * 1e3:10.3f} ms  min {min(self.rounds[name]) * 1e3:10.3f}"
            lines.append(f"  {name:{width}} {times}  {first} / it = {self.ratio(first, name):.2f}")
        return "\n".join(lines)


def compare(
    functions: Mapping[str, Callable[[], Any]],
    *,
    seconds: float = 4.0,
    min_rounds: int = 5,
    max_rounds: int = 400,
    threads: int = 1,
    caches: Caches = "cold",
) -> Comparison:
    """Time functions in turns.

    With one thread the clock is the process's CPU time, which other programs do not lengthen by
    taking the core away; with more it is wall time, because waiting threads spin.

    Args:
        functions: what to time, by name; the first one is the baseline in the printed form.
        seconds: about how long to measure in all.
        min_rounds: at least so many rounds, even if they take longer.
        max_rounds: at most so many.
        threads: torch's thread count meanwhile.
        caches: "cold" evicts the caches before every timed call; "warm" calls the function first,
            unless it takes more than `WARMED`.

    Returns:
        The times of all rounds.
    """
    clock = time.process_time if threads == 1 else time.perf_counter
    eviction = torch.zeros(EVICTION_BYTES // 4) if caches == "cold" else None
    rounds: dict[str, list[float]] = {name: [] for name in functions}
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        last: dict[str, float] = {}
        for name, function in functions.items():  # first calls compile, allocate and plan
            start = clock()
            function()
            last[name] = clock() - start
        deadline = time.perf_counter() + seconds
        for count in range(max_rounds):
            if count >= min_rounds and time.perf_counter() > deadline:
                break
            for name, function in functions.items():
                if eviction is not None:
                    eviction.add_(1)
                elif last[name] < WARMED:
                    function()
                start = clock()
                function()
                last[name] = clock() - start
                rounds[name].append(last[name])
    finally:
        torch.set_num_threads(before)
    return Comparison(rounds)


def plain_read(tensor: Tensor, *, threads: int = 1) -> Callable[[], Any]:
    """One read of a dense tensor's memory, by the instruction set in use: the floor of one pass."""
    core = _native_call.module
    if core is None:
        return lambda: tensor.sum()
    view = _native_call.view(tensor)  # the caller's function keeps the tensor alive
    count = tensor.numel() * tensor.element_size() // 4
    return lambda: (core.stream_read(view, count, threads), tensor)
