"""Runs the cases of PANet's annotations and of DENet's augmentations; every pixel must agree."""

from __future__ import annotations

import random
import re

import numpy as np
import torch
from PIL import Image

from fastfss.data import box_masks, dense_masks, scribble_masks
from fastfss.data.augment import (
    CenterCrop,
    Compose,
    HorizontalFlip,
    JointTransform,
    LongSide,
    RandomArea,
    RandomCrop,
    RandomScale,
    RandomStretch,
    Square,
    VerticalFlip,
)
from tests.parity.golden import Case, Report


def run_panet_annotations(case: Case, report: Report) -> None:
    label, number = case.tensor("label"), int(case["class_id"])
    foreground, background = dense_masks(label, number, case["class_ids"].tolist())
    generator = random.Random(int(case["seed"]))
    scribbles = scribble_masks(case.tensor("scribble"), foreground, generator)
    boxes = box_masks(case.tensor("instance"), foreground)
    for key, masks in (
        ("mask", (foreground, background)),
        ("scribble", scribbles),
        ("bbox", boxes),
    ):
        for side, mask in zip(("fg", "bg"), masks, strict=True):
            assert mask.dtype == torch.uint8
            report.compare(f"out_{side}_{key}", mask, case[f"out_{side}_{key}"], tolerance=0)


def run_denet_augment(case: Case, report: Report) -> None:
    image, mask = Image.fromarray(case["image"]), Image.fromarray(case["mask"])
    seed = int(re.search(r"random\.seed\((\d+)\)", str(case["note"]))[1])
    names = [k[len("out_") : -len("_image")] for k in case.arrays if k.endswith("_image")]
    for name in names:
        transform = _transform(case, name)
        outputs = transform(image, mask, random.Random(seed))
        for kind, ours in zip(("image", "mask"), outputs, strict=True):
            key = f"out_{name}_{kind}"
            report.compare(key, torch.from_numpy(np.array(ours)), case[key], tolerance=0)


def _transform(case: Case, name: str) -> JointTransform:
    """The operation: its size from its output, its other parameters from the case's note."""
    sized = {
        "sscale": Square,
        "rcrop": RandomCrop,
        "rcrop_small": RandomCrop,
        "scale": LongSide,
        "ccrop": CenterCrop,
        "rsizecrop": RandomArea,
        "rsize": RandomStretch,
    }
    height, width = case[f"out_{name}_mask"].shape
    if name in sized:
        return sized[name](max(height, width))
    if name == "default":
        return Compose(Square(height), HorizontalFlip(*_noted(case, "then hflip")))
    if name == "rscale":
        return RandomScale(*_noted(case, name))
    return {"hflip": HorizontalFlip, "vflip": VerticalFlip}[name](*_noted(case, name))


def _noted(case: Case, name: str) -> list[float]:
    """The numbers behind a name in the note: "hflip 0.5", "rscale (0.5, 1.5)"."""
    number = r"\d+(?:\.\d+)?"
    found = re.search(rf"{name} (\([^)]*\)|{number})", str(case["note"]))[1]
    return [float(value) for value in re.findall(number, found)]
