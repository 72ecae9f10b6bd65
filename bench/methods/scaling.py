"""Fitting a number of shots in a process of its own: times, the Task's size, peak memory.

    python -m bench.methods.scaling METHOD SHOTS

Shots come one after the other, as from a disk, and are fitted CHUNK at a time; `Task.merge` puts
the tasks together. A Task keeps its shots apart, so that they can be removed again: it grows with
them, and what a method works with beside it is measured apart from it.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
import warnings
from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor

from bench.memory import peak, resting
from fastfss import Task, create_model
from fastfss.methods import FewShotSegmenter

SIDE = 64
CHUNK = 20
# Encoder and layers: small, since what grows with the shots does not depend on them.
METHODS = {
    "mlc": ("resnet18", ("layer2",)),
    "panet": ("resnet18", ("layer2",)),
    "propagation": ("resnet18", ("layer2",)),
}
MIB = 1 << 20


def shots(count: int, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Random images with a square object somewhere."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        image = torch.randint(256, (3, SIDE, SIDE), generator=generator).to(torch.uint8)
        top, left = torch.randint(SIDE // 2, (2,), generator=generator).tolist()
        mask = torch.zeros(SIDE, SIDE)
        mask[top : top + SIDE // 2, left : left + SIDE // 2] = 1
        yield image, mask


def fit_streaming(model: FewShotSegmenter, count: int) -> Task:
    """The task of `count` shots, of which CHUNK are in memory at a time."""
    source = shots(count)
    tasks = []
    while chunk := list(islice(source, CHUNK)):
        tasks.append(model.fit(chunk))
    return tasks[0].merge(*tasks[1:])


def small_model(method: str) -> FewShotSegmenter:
    """A method with random weights on small images."""
    torch.manual_seed(0)
    encoder, layers = METHODS[method]
    made = create_model(method, encoder=encoder, layers=layers, size=SIDE).eval()
    return made.for_inference()


def measure(method: str, count: int) -> dict[str, float]:
    """Milliseconds a shot and a query; MiB of the task, and of the peak above the model's."""
    torch.set_num_threads(1)
    model = small_model(method)
    query = next(shots(1, seed=1))[0]
    model.predict(query, fit_streaming(model, 2 * CHUNK))
    before = resting()
    started = time.process_time()
    task = fit_streaming(model, count)
    fitted = time.process_time() - started
    times = []
    for _ in range(5):
        started = time.process_time()
        model.predict(query, task)
        times.append(time.process_time() - started)
    size = sum(tensor.numel() * tensor.element_size() for tensor in task.tensors.values())
    assert task.shots == count
    return {
        "fit_ms_a_shot": round(1e3 * fitted / count, 3),
        "query_ms": round(1e3 * statistics.median(times), 3),
        "task_mib": round(size / MIB, 3),
        "peak_mib": round(peak() - before, 2),
    }


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # of random weights
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
