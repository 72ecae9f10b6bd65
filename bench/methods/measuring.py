"""What the benchmarks of methods do with two forms of the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from bench.compare import compare


def measure(
    benchmark: Any, title: str, published: Callable[[], Tensor], ours: Callable[[], Tensor]
) -> None:
    """Compare, print, record, and require equal results."""
    wanted = published()
    difference = (ours() - wanted).norm() / wanted.norm()
    forms = {"published": published, "ours": ours}
    # The slowest published forward takes 6 s, and every round runs each form twice.
    measured = compare(forms, seconds=20, min_rounds=3, caches="warm")
    benchmark.pedantic(ours, rounds=3)
    ratio = round(measured.ratio("published", "ours"), 2)
    benchmark.extra_info.update(
        measured.as_dict(), ratio=ratio, relative_difference=float(difference)
    )
    print(f"\n{title}: {measured}\n  relative difference {difference:.1e}")
    assert difference < 1e-4
