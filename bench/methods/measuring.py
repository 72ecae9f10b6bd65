"""What the benchmarks of methods do with two forms of the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bench.ceiling import floor, multiply_adds
from bench.compare import compare, plain_read
from bench.flop import flop_of

# Of the norm of what is published. Whole networks round to bfloat16 some fifty times.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}


def episode(shots: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Supports (1, K, 3, H, W) of noise, their masks (1, K, H, W), and a query (1, 3, H, W)."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, shots, 3, size, size, generator=generator)
    masks = torch.zeros(1, shots, size, size)
    masks[..., 100:300, 150:350] = 1
    return images, masks, torch.randn(1, 3, size, size, generator=generator)


def measure(
    benchmark: Any,
    title: str,
    published: Callable[[], Tensor],
    ours: Callable[[], Tensor] | Mapping[str, Callable[[], Tensor]],
    *,
    dtype: torch.dtype = torch.float32,
    seconds: float = 20,
    tolerance: float | None = None,
    reads: Sequence[Tensor] = (),
) -> None:
    """Require equal results, then compare, print, and record the forms beside their floors.

    A form's floor is its products at the rate of multiply-adds in registers, or one read of its
    inputs where that takes longer; rate and read are measured in the same rounds.

    Args:
        benchmark: pytest-benchmark's fixture.
        title: for the reader of what is printed.
        published: the published form, of which the slowest take 6 s a call.
        ours: the same by us; forms by name, starting with "ours", where there are several.
        dtype: what ours computes in.
        seconds: about how long to measure.
        tolerance: largest relative difference; None takes the dtype's.
        reads: what every form of ours reads at least, where products alone are no floor.
    """
    own = dict(ours) if isinstance(ours, Mapping) else {"ours": ours}
    forms = {"published": published, **own}
    limits: dict[str, Callable[[], Any]] = {"multiply-adds": multiply_adds(dtype)}
    if reads:
        each = [plain_read(one) for one in reads]
        limits["plain read"] = lambda: [read() for read in each]
    with torch.inference_mode():
        wanted = published().float()
        found = {
            name: float((form().float() - wanted).norm() / wanted.norm())
            for name, form in own.items()
        }
        flop = {name: flop_of(form) for name, form in own.items()}
        # Every round runs each form twice.
        measured = compare(forms | limits, seconds=seconds, min_rounds=3, caches="warm")
        benchmark.pedantic(list(own.values())[-1], rounds=3)
    read = measured.median("plain read") if reads else 0.0
    least = {
        name: max(floor(count, measured.median("multiply-adds")), read)
        for name, count in flop.items()
    }
    for name in own:
        of = "" if name == "ours" else f" of {name}"
        benchmark.extra_info[f"ratio{of}"] = round(measured.ratio("published", name), 2)
        benchmark.extra_info[f"floor{of}_ms"] = round(least[name] * 1e3, 4)
    difference = max(found.values())
    benchmark.extra_info.update(measured.as_dict(), relative_difference=float(f"{difference:.1e}"))
    print(f"\n{title}: {measured}\n  relative difference {difference:.1e}")
    for name, seconds_of in least.items():
        share = seconds_of / measured.median(name)
        print(f"  floor of {name}: {seconds_of * 1e3:.2f} ms, {share:.0%} ({flop[name]:.3g} FLOP)")
    assert difference < (TOLERANCE[dtype] if tolerance is None else tolerance)
