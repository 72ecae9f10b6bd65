"""Every exported method at its published size: how fast, and how close to eager float32.

Weights are random, but the default model's; what a method makes of them costs what it costs
trained. `passed` says whether the engine's logits and masks are eager's (`fastfss engines verify`).
One thread, wall time: run it on a machine that does nothing else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fastfss.engines.verify import METHODS, verify, verify_method


@pytest.mark.parametrize("method", METHODS)
def test_engines_of_a_method(benchmark: Any, method: str, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = verify_method(method, tmp_path / "engine")
        found += verify(tmp_path / "engine", backends=["openvino+eager"])
    finally:
        torch.set_num_threads(threads)
    benchmark.pedantic(lambda: None, rounds=1)
    for one in found:
        print(f"\n{method}: {one}", end="")
        if one.reason is None:
            benchmark.extra_info[one.backend] = {
                "encode_ms": round(one.encode_ms, 1),
                "match_ms": round(one.match_ms, 1),
                "load_s": round(one.load_seconds, 2),
                "first_s": round(one.first_seconds, 2),
                "encode_error": float(f"{one.encode:.1e}"),
                "match_error": float(f"{one.match:.1e}"),
                "iou": round(one.iou, 4),
                "passed": one.passed,
            }
    assert all(one.passed for one in found)
