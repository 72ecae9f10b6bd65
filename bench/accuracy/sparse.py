"""From sparse to dense annotation: mIoU against points of each class and shots.

    python -m bench.accuracy.sparse --data DATA --out rows.json \
        [--method ssp --encoder mobilenet_v2_tf --weights FILE --layers layer3,layer4]

The sweep of Rakelly et al., arXiv 1806.07373, for any method: of each support so many points of the
object and of the background are drawn, "dense" is the whole mask; without --method the default
model. Episodes are those of bench/accuracy/frozen.py, the same for every number of points.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import numpy as np
import torch

import fastfss
from bench.accuracy.frozen import OBJECTS, fit_masks, score
from bench.accuracy.sets import Annotated, Episode, episodes, read_set
from fastfss import Annotation, Task
from fastfss.atomic import write_text_atomically
from fastfss.data import read_mask
from fastfss.methods import FewShotSegmenter

DENSE = "dense"
POINTS = ("1", "2", "4", "8", "16", "32", DENSE)


def annotation(support: Annotated, points: int, generator: random.Random) -> Annotation:
    """So many points of the object and of the background."""
    mask = read_mask(support.mask, value=support.value).numpy()
    said = Annotation()
    for value in (0, 1):
        places = np.argwhere(mask == value)
        for number in generator.sample(range(len(places)), min(points, len(places))):
            y, x = places[number]
            said = said.point(int(x) + 0.5, int(y) + 0.5, positive=value == 1)
    return said


def miou(model: FewShotSegmenter, chosen: list[Episode], points: str, seed: int) -> float:
    """In percent, classes averaged."""

    def fit(number: int, episode: Episode) -> Task:
        if points == DENSE:
            return fit_masks(model, episode)
        generator = random.Random(f"{seed} {number} {points}")
        return model.fit(
            [(one.image, annotation(one, int(points), generator)) for one in episode.supports]
        )

    return score(model, chosen, fit)["miou"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder of fss_small/")
    parser.add_argument("--method", default="default")
    parser.add_argument("--encoder")
    parser.add_argument("--weights")
    parser.add_argument("--layers")
    parser.add_argument("--size", type=int)
    parser.add_argument("--points", nargs="+", default=list(POINTS))
    parser.add_argument("--shots", nargs="+", type=int, default=[1, 5])
    parser.add_argument("--queries", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = fastfss.create_model(
        arguments.method,
        encoder=arguments.encoder,
        weights=arguments.weights,
        layers=None if arguments.layers is None else arguments.layers.split(","),
        size=arguments.size,
    ).for_inference()
    categories = read_set(arguments.data / "fss_small", OBJECTS)
    rows = []
    for shots in arguments.shots:
        chosen = list(
            episodes(categories, shots=shots, queries=arguments.queries, seed=arguments.seed)
        )
        for points in arguments.points:
            found = miou(model, chosen, points, arguments.seed)
            rows.append(
                {"method": arguments.method, "shots": shots, "points": points, "miou": found}
            )
            print(json.dumps(rows[-1]), flush=True)
            if arguments.out is not None:
                write_text_atomically(arguments.out, json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
