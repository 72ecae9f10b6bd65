"""1 to 1000 ways: one encoding of the query, and the time of each way.

pytest bench/methods/test_ways.py --benchmark-json FILE
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import pytest
import torch

from bench.methods.scaling import fit_streaming, shots, small_model

WAYS = (1, 10, 100, 1000)


@pytest.mark.filterwarnings("ignore:this model has random weights")
@pytest.mark.parametrize("method", ["mlc", "panet", "propagation"])
def test_ways_share_one_encoding(benchmark: Any, method: str) -> None:
    torch.set_num_threads(1)
    model = small_model(method)
    every = fit_streaming(model, max(WAYS))
    tasks = [every.select([number]) for number in range(max(WAYS))]
    query = next(shots(1, seed=1))[0]
    encodings: list[int] = []
    model.encoder.register_forward_hook(lambda _model, inputs, _maps: encodings.append(len(inputs)))

    found: dict[str, float] = {}
    for ways in WAYS:
        times = []
        for _ in range(5 if ways < max(WAYS) else 3):
            encodings.clear()
            started = time.process_time()
            result = model.predict(query, tasks[:ways])
            times.append(time.process_time() - started)
            assert len(encodings) == 1
            assert len(result.confidence) == ways
        found[f"{ways}_ways_ms"] = round(1e3 * statistics.median(times), 2)
    least, most = (found[f"{ways}_ways_ms"] for ways in (min(WAYS), max(WAYS)))
    a_way = (most - least) / (max(WAYS) - min(WAYS))
    benchmark.pedantic(lambda: model.predict(query, tasks[:10]), rounds=3)
    benchmark.extra_info.update(method=method, **found, a_further_way_ms=round(a_way, 4))
    print(f"\n{method}: {found}, a further way {a_way:.3f} ms")
    assert a_way < least
