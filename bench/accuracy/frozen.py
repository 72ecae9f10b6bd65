"""mIoU of SSP and the MLC baseline with a frozen ImageNet encoder, nothing trained.

    python -m bench.accuracy.frozen --data FOLDER --encoder resnet18 --weights FILE \
        --layers layer2,layer3 --size 320 --shots 1 5

FOLDER holds fss_small/, coco_mini/ and clothing/ in the layouts of bench/accuracy/sets.py. Figures:
per set, intersection and union summed per class, IoU averaged over classes (HSNet's accumulator),
at the query's own size, mask pixels of 255 left out.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

import fastfss
from bench.accuracy.sets import Categories, Episode, episodes, read_set
from fastfss import Task
from fastfss.data import read_mask
from fastfss.encoders import Encoder
from fastfss.methods import FewShotSegmenter
from fastfss.protocols import FoldMeter

OBJECTS = ("african_elephant", "apple", "basketball", "cow")
DEFECTS = ("tile_blowhole", "tile_break", "tile_crack", "tile_uneven")
METHODS: dict[str, tuple[str, dict[str, object]]] = {
    "mlc": ("mlc", {}),
    "ssp": ("ssp", {"refine": False}),
    "ssp-refined": ("ssp", {"refine": True}),
}


class RememberingEncoder(Encoder):
    """An encoder that runs once per image and keeps the maps."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__(encoder.name, encoder.features, encoder.normalization)
        self.inner = encoder
        self._maps: dict[int, dict[str, Tensor]] = {}

    def forward(self, images: Tensor, names: Sequence[str] | None = None) -> dict[str, Tensor]:
        key = hash(images.numpy().tobytes())
        if key not in self._maps:
            self._maps[key] = self.inner(images)
        maps = self._maps[key]
        return maps if names is None else {name: maps[name] for name in names}


# An episode's number in the list, and the episode.
Fit = Callable[[int, Episode], Task]


def read_sets(root: Path) -> dict[str, Categories]:
    """The development sets below a folder, by the names used in the table."""
    return {
        "objects": read_set(root / "fss_small", OBJECTS),
        "defects": read_set(root / "fss_small", DEFECTS),
        "coco": read_set(root / "coco_mini"),
        "clothing": read_set(root / "clothing"),
    }


def score(
    model: FewShotSegmenter, chosen: Iterable[Episode], fit: Fit | None = None
) -> dict[str, float]:
    """mIoU in percent, and every class's IoU.

    Args:
        model: segments the queries.
        chosen: the episodes.
        fit: makes the task of an episode, given its number too; by default of the masks.
    """
    chosen = list(chosen)
    names = sorted({episode.category for episode in chosen})
    meter = FoldMeter(list(range(len(names))))
    for number, episode in enumerate(chosen):
        task = fit_masks(model, episode) if fit is None else fit(number, episode)
        result = model.predict(episode.query.image, task)
        truth = read_mask(episode.query.mask, value=episode.query.value)
        category = torch.tensor([names.index(episode.category)])
        meter.update(torch.from_numpy(result.labels)[None], truth[None], category)
    ious = {names[number]: round(iou, 1) for number, iou in meter.class_iou().items()}
    return {"miou": round(meter.compute()["miou"], 1), **ious}


def fit_masks(model: FewShotSegmenter, episode: Episode) -> Task:
    """The task of an episode's whole masks."""
    shots = [(one.image, one.mask) for one in episode.supports]
    return model.fit(shots, mask_value=episode.supports[0].value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--layers", nargs="+", required=True, help="for example layer2,layer3")
    parser.add_argument("--size", nargs="+", type=int, default=[320])
    parser.add_argument("--shots", nargs="+", type=int, default=[1, 5])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--queries", type=int, default=4, help="episodes a class; objects get 10")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="append the rows as JSON lines")
    arguments = parser.parse_args()

    sets = read_sets(arguments.data)
    for size in arguments.size:
        encoder = RememberingEncoder(
            fastfss.create_encoder(arguments.encoder, weights=arguments.weights).eval()
        )
        for layers, method in itertools.product(arguments.layers, arguments.methods):
            name, options = METHODS[method]
            model = fastfss.create_model(
                name,
                encoder=encoder,
                layers=layers.split(","),
                size=size,
                **options,
            )
            for shots in arguments.shots:
                row: dict[str, object] = {
                    "encoder": arguments.encoder,
                    "layers": layers,
                    "size": size,
                    "method": method,
                    "shots": shots,
                    "seed": arguments.seed,
                }
                for label, categories in sets.items():
                    queries = 10 if label in ("objects", "defects") else arguments.queries
                    chosen = episodes(categories, shots=shots, queries=queries, seed=arguments.seed)
                    scores = score(model, chosen)
                    row[label] = scores["miou"]
                    if label == "objects":
                        row["per class"] = scores
                print(json.dumps(row), flush=True)
                if arguments.out is not None:
                    with arguments.out.open("a") as file:
                        file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
