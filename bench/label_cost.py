"""What `fastfss label` costs an image and a class: CPU seconds, measured and fitted as a + b N.

    python -m bench.label_cost --images FOLDER --support IMAGE MASK [--size 320] [--ways 1 4 16]

CPU seconds of one thread: what else runs on the machine changes them less than the clock's. The
encoder's backends take turns, image by image.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

import fastfss
from fastfss import Task
from fastfss.allocation import keep_freed_memory
from fastfss.cli.label_formats import ShardFiles
from fastfss.cli.label_images import LabelImage, find_label_images
from fastfss.engines import accelerate
from fastfss.methods import FewShotSegmenter

Seconds = tuple[float, float, float]  # reading, predicting, writing


def measured(
    model: FewShotSegmenter, image: LabelImage, number: int, tasks: Sequence[Task]
) -> Seconds:
    """What one image takes."""
    times = [time.process_time()]
    pixels = image.read()
    times.append(time.process_time())
    result = model.predict(pixels, tasks)
    times.append(time.process_time())
    with (
        tempfile.TemporaryDirectory() as folder,
        ShardFiles(Path(folder), ("masks", "coco")) as files,
    ):
        files.add(number, image, result)
    times.append(time.process_time())
    return times[1] - times[0], times[2] - times[1], times[3] - times[2]


def fitted(
    ways: Sequence[int], costs: Mapping[str, Sequence[float]]
) -> tuple[dict[str, float], float]:
    """The a of each backend and their b, which no encoder changes: the least relative errors."""
    seconds = np.array([costs[backend] for backend in costs])
    # A column for each backend's a, and one for b.
    rows = np.concatenate(
        [
            np.eye(len(costs)).repeat(len(ways), axis=0),
            np.tile(np.array(ways, dtype=float), len(costs))[:, None],
        ],
        axis=1,
    )
    flat = seconds.reshape(-1)
    *starts, slope = np.linalg.lstsq(rows / flat[:, None], np.ones_like(flat), rcond=None)[0]
    return dict(zip(costs, starts, strict=True)), float(slope)


def main() -> None:
    """Print a line for each number of ways, then the fit."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--images", required=True, help="a folder of photographs")
    parser.add_argument("--support", required=True, nargs=2, type=Path, metavar=("IMAGE", "MASK"))
    parser.add_argument("--method", default="default")
    parser.add_argument("--size", type=int)
    parser.add_argument("--ways", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--backends", nargs="+", default=["eager", "auto"])
    parser.add_argument("--count", type=int, default=9, help="images a measurement")
    chosen = parser.parse_args()

    keep_freed_memory()  # as the command does
    torch.set_num_threads(1)
    plain = fastfss.create_model(chosen.method, size=chosen.size).for_inference()
    task = plain.fit([tuple(chosen.support)])
    models = {backend: accelerate(plain, backend) for backend in chosen.backends}
    images = find_label_images([chosen.images])[: chosen.count]
    print(f"{chosen.method}, size {plain.size}, {len(images)} images, CPU seconds an image:")
    costs: dict[str, list[float]] = {backend: [] for backend in models}
    for ways in chosen.ways:
        tasks = [task] * ways
        times: dict[str, list[Seconds]] = {backend: [] for backend in models}
        for model in models.values():
            model.predict(images[0].read(), tasks)
        for number, image in enumerate(images, start=1):
            for backend, model in models.items():
                times[backend].append(measured(model, image, number, tasks))
        for backend, rows in times.items():
            read, predict, write = (statistics.median(one) for one in zip(*rows, strict=True))
            costs[backend].append(read + predict + write)
            print(
                f"{ways:5} ways, {backend:5}: {costs[backend][-1]:.4f} "
                f"(read {read:.4f}, predict {predict:.4f}, write {write:.4f})",
                flush=True,
            )
    if len(chosen.ways) > 1:
        starts, slope = fitted(chosen.ways, costs)
        for backend, start in starts.items():
            print(f"{backend}: a = {start:.4f} s an image, b = {slope:.4f} s an image and class")


if __name__ == "__main__":
    main()
