"""1 to 10 000 shots: time of fitting and of a query, and memory.

    pytest bench/methods/test_shots.py -m "" --benchmark-json FILE

A prototype method's task has two vectors a shot, 1 KiB here, and nothing else grows with the shots:
the peak is that of one chunk of images, and the task. A dense method's task holds every position of
every shot, and a query reads them all, so its memory is proportional to the shots: what is required
of it is no more than four times the task: the parts that it was merged of, and keys laid out for
the products (2 to 3 times were measured).
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
# MiB above the model's that encoding one chunk of images takes, twice the 15 that were measured.
CHUNK_MIB = 30
# The task and the parts that it is merged of; or the task and copies of it in a query.
MERGED, COPIED = 2, 4
SLOW = pytest.mark.slow
PROTOTYPES = [1, 10, 100, 1000, pytest.param(10_000, marks=SLOW)]
DENSE = [1, 10, 100, pytest.param(1000, marks=SLOW)]


def measured(benchmark: Any, method: str, shots: int) -> dict[str, float]:
    """What a process of its own found, recorded."""
    run = subprocess.run(
        [sys.executable, "-m", "bench.methods.scaling", method, str(shots)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    found: dict[str, float] = json.loads(run.stdout)
    benchmark.pedantic(lambda: None, rounds=1)
    benchmark.extra_info.update(method=method, shots=shots, **found)
    print(f"\n{method}, {shots} shots: {found}")
    return found


@pytest.mark.parametrize("shots", PROTOTYPES)
def test_prototypes_need_constant_memory(benchmark: Any, shots: int) -> None:
    found = measured(benchmark, "mlc", shots)
    assert found["task_mib"] <= shots * 1.1 / 1024
    assert found["peak_mib"] <= CHUNK_MIB + MERGED * found["task_mib"]


@pytest.mark.parametrize("shots", DENSE)
def test_dense_matching_needs_its_task_and_copies(benchmark: Any, shots: int) -> None:
    found = measured(benchmark, "propagation", shots)
    assert found["peak_mib"] <= CHUNK_MIB + COPIED * found["task_mib"]
