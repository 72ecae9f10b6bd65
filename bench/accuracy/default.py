"""The package's default model against frozen encoders, on classes that no training saw.

    python -m bench.accuracy.default --data DATA --work WORK [--splits 0 1 2 3 4] --out rows.json

DATA holds the sets of bench/accuracy/frozen.py, davis_mini/ and backbones/; WORK is the folder of
`python -m fastfss.training.default_weights`, with a model for each split. Per set mIoU in percent
as there, on classes that the split leaves out (objects and defects: all, no training sees them);
then AUROC of presence and of confidence, queries with against queries without the class. Each
split's model has the mean calibration of the other splits.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path

import torch

import fastfss
from bench.accuracy.frozen import RememberingEncoder, read_sets, score
from bench.accuracy.sets import Categories, Episode, episodes
from fastfss.atomic import write_text_atomically
from fastfss.methods import FewShotSegmenter
from fastfss.training.default_weights.calibration import area_under_curve
from fastfss.training.default_weights.photos import Split, make_split, read_photos

SPLITS = 5
QUERIES = {"coco": 5, "clothing": 3, "objects": 8, "defects": 8}
# Encoder, its file, layers: the best of docs/frozen-encoders.md.
FROZEN = {
    "MobileNetV2": ("mobilenet_v2_tf", "mobilenet_v2.safetensors", ("layer3", "layer4")),
    "ResNet-18": ("resnet18", "resnet18_to_layer3.safetensors", ("layer3",)),
    "SqueezeNet 1.1": ("squeezenet1_1", "squeezenet1_1.safetensors", ("fire9",)),
}
RULES: dict[str, tuple[str, dict[str, object]]] = {
    "plain prototypes": ("mlc", {}),
    "SSP": ("ssp", {"refine": True}),
    "dense matching": ("propagation", {}),
}
SIZE = 480
Models = Iterator[tuple[str, FewShotSegmenter]]


def held_out(root: Path, split: Split) -> dict[str, Categories]:
    """The sets' classes and photographs that a split leaves out."""
    sets = read_sets(root)
    tested = {
        name: [one for one in images if one.image in split.tested]
        for name, images in sets["clothing"].items()
    }
    return {
        "coco": _of(sets["coco"], "coco", split),
        "clothing": _of(tested, "clothing", split),
        "objects": sets["objects"],
        "defects": sets["defects"],
    }


def _of(categories: Categories, kind: str, split: Split) -> Categories:
    return {n: images for n, images in categories.items() if f"{kind}/{n}" in split.held_out}


def frozen_models(root: Path) -> Models:
    """Frozen encoders with the rules that need no training."""
    for label, (name, file, layers) in FROZEN.items():
        encoder = fastfss.create_encoder(name, weights=root / "backbones" / file, folded=True)
        remembering = RememberingEncoder(encoder.eval())
        for rule, (method, options) in RULES.items():
            if method == "propagation" and name != "mobilenet_v2_tf":
                continue  # its own layers are MobileNetV2's
            if method == "propagation":
                layers = ("layer2", "layer3", "layer4")
            yield (
                f"{rule}, {label}",
                fastfss.create_model(
                    method, encoder=remembering, layers=layers, size=SIZE, **options
                ),
            )


def split_model(work: Path, number: int) -> FewShotSegmenter:
    """The model that a split trained, with the other splits' calibration."""
    models = {
        n: fastfss.create_model("default", weights=work / f"split{n}.safetensors")
        for n in range(SPLITS)
    }
    others = [model.calibration for n, model in models.items() if n != number]
    models[number].calibration.copy_(torch.stack(others).mean(dim=0))
    return models[number].for_inference()


def absent_pairs(categories: Categories, seed: int) -> Iterator[Episode]:
    """Episodes whose query does not show the class: it is of another class of the set."""
    shown: dict[str, set[str]] = {}
    for name, images in categories.items():
        for one in images:
            shown.setdefault(one.image.stem, set()).add(name)
    everything = [one for images in categories.values() for one in images]
    for name, images in categories.items():
        rng = random.Random(f"{seed} absent {name}")
        others = [one for one in everything if name not in shown[one.image.stem]]
        for support in rng.sample(images, min(4, len(images))):
            if others:
                yield Episode(name, (support,), rng.choice(others))


def presence_scores(
    model: FewShotSegmenter, chosen: list[Episode]
) -> tuple[list[float], list[float]]:
    """Presence and confidence of each episode."""
    presence, confidence = [], []
    for episode in chosen:
        (support,) = episode.supports
        task = model.fit([(support.image, support.mask)], mask_value=support.value)
        result = model.predict(episode.query.image, task)
        presence.append(1.0 if result.presence is None else result.presence[0])
        confidence.append(result.confidence[0])
    return presence, confidence


def rows_of(
    label: str, model: FewShotSegmenter, sets: dict[str, Categories], split: int
) -> Iterator[dict[str, object]]:
    """The table's rows of a model and a split."""
    for shots in (1, 5):
        row: dict[str, object] = {"model": label, "split": split, "shots": shots}
        found = []
        for name, categories in sets.items():
            chosen = list(episodes(categories, shots=shots, queries=QUERIES[name], seed=split))
            if chosen:
                row[name] = score(model, chosen)["miou"]
                found.append(row[name])
        yield {**row, "mean": round(sum(found) / len(found), 2)}


def presence_rows(
    label: str, model: FewShotSegmenter, sets: dict[str, Categories], split: int
) -> Iterator[dict[str, object]]:
    """AUROC of each set: queries with against queries without the class."""
    for name in ("coco", "clothing", "objects"):
        here = list(episodes(sets[name], shots=1, queries=4, seed=split))
        away = list(absent_pairs(sets[name], split))
        scores = [presence_scores(model, chosen) for chosen in (here, away)]
        truth = [True] * len(here) + [False] * len(away)
        yield {
            "model": label,
            "split": split,
            "set": name,
            "auroc presence": round(area_under_curve(scores[0][0] + scores[1][0], truth), 3),
            "auroc confidence": round(area_under_curve(scores[0][1] + scores[1][1], truth), 3),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--splits", type=int, nargs="+", default=list(range(SPLITS)))
    parser.add_argument("--models", nargs="+", choices=("default", "frozen"), default=["default"])
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    photos = read_photos(chosen.data)
    rows: list[dict[str, object]] = []
    for number in chosen.splits:
        sets = held_out(chosen.data, make_split(photos, number))
        if "default" in chosen.models:
            models: Models = iter([("default", split_model(chosen.work, number))])
        else:
            models = frozen_models(chosen.data)
        for label, model in models:
            made = rows_of(label, model, sets, number)
            if label == "default":
                made = itertools.chain(made, presence_rows(label, model, sets, number))
            for row in made:
                print(json.dumps(row), flush=True)
                rows.append(row)
                write_text_atomically(chosen.out, json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
