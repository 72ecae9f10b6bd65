"""What `fastfss label` costs an image and a class: CPU seconds, measured and fitted as a + b N.

    python -m bench.label_cost --images FOLDER --support IMAGE MASK [--size 320] [--ways 1 4 16]

CPU seconds of one thread: what else runs on the machine changes them less than the clock's.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import fastfss
from fastfss.cli.label_formats import ShardFiles
from fastfss.cli.label_images import find_label_images


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
    parser.add_argument("--count", type=int, default=9, help="images a measurement")
    chosen = parser.parse_args()

    torch.set_num_threads(1)
    model = fastfss.create_model(chosen.method, size=chosen.size).for_inference()
    task = model.fit([tuple(chosen.support)])
    images = find_label_images([chosen.images])[: chosen.count]
    print(f"{chosen.method}, size {model.size}, {len(images)} images, CPU seconds an image:")
    costs = []
    for ways in chosen.ways:
        tasks = [task] * ways
        model.predict(images[0].read(), tasks)
        rows = []
        for number, image in enumerate(images):
            times = [time.process_time()]
            pixels = image.read()
            times.append(time.process_time())
            result = model.predict(pixels, tasks)
            times.append(time.process_time())
            with (
                tempfile.TemporaryDirectory() as folder,
                ShardFiles(Path(folder), ("masks", "coco")) as files,
            ):
                files.add(number + 1, image, result)
            times.append(time.process_time())
            rows.append(np.diff(times))
        read, predict, write = (statistics.median(column) for column in zip(*rows, strict=True))
        costs.append(read + predict + write)
        print(f"{ways:5} ways: read {read:.4f}, predict {predict:.4f}, write {write:.4f}")
    if len(costs) > 1:  # the smallest relative errors
        slope, start = np.polyfit(chosen.ways, costs, 1, w=1 / np.array(costs))
        print(f"a = {start:.4f} s an image, b = {slope:.4f} s an image and class")


if __name__ == "__main__":
    main()
