"""A tiny few-shot set of coloured shapes, and recipes that train on it within seconds."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from fastfss.training import Recipe, recipe_from

CLASSES = ("disc", "square", "bar", "ring", "cross", "wedge", "frame", "dot")


def shape(name: str, size: int, rng: random.Random) -> np.ndarray:
    """bool (size, size): the shape, at a place and of a size of its own."""
    y, x = np.mgrid[:size, :size].astype(float)
    radius = rng.uniform(0.18, 0.28) * size
    y -= rng.uniform(0.35, 0.65) * size
    x -= rng.uniform(0.35, 0.65) * size
    distance = np.hypot(y, x)
    across = np.maximum(abs(y), abs(x))
    return {
        "disc": distance < radius,
        "square": across < 0.8 * radius,
        "bar": (abs(y) < 0.4 * radius) & (abs(x) < 1.4 * radius),
        "ring": (distance < radius) & (distance > 0.55 * radius),
        "cross": (across < radius) & ((abs(y) < radius / 3) | (abs(x) < radius / 3)),
        "wedge": (abs(x) < radius - abs(y)) | ((across < 0.5 * radius) & (x > 0)),
        "frame": (across < radius) & (across > 0.55 * radius),
        "dot": distance < 0.7 * radius,
    }[name]


def write_shapes(root: Path, images: int = 48, size: int = 48, seed: int = 0) -> Path:
    """Write images/, masks/, classes.txt: one or two classes an image, 255 in some."""
    rng = random.Random(seed)
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    for number in range(images):
        first = number % len(CLASSES)
        shown = [first] if number % 3 else [(first + 3) % len(CLASSES), first]
        height, width = size + rng.randrange(9), size + rng.randrange(9)
        pixels = np.random.default_rng(rng.randrange(1 << 30)).integers(0, 60, (height, width, 3))
        labels = np.zeros((height, width), np.uint8)
        for place in shown:
            inside = np.zeros((height, width), bool)
            inside[:size, :size] = shape(CLASSES[place], size, rng)
            colour = np.array([(40 * place) % 200, (90 * place + 50) % 200, (150 * place) % 200])
            pixels[inside] = colour + rng.randrange(40)
            labels[inside] = place + 1
        if number % 4 == 0:
            labels[:3] = 255
        name = f"shape{number:03d}"
        Image.fromarray(pixels.astype(np.uint8)).save(root / "images" / f"{name}.png")
        Image.fromarray(labels).save(root / "masks" / f"{name}.png")
    return root


def write_activations(root: Path, folder: Path) -> Path:
    """A map of every class in every image of the shapes: its mask, shrunk."""
    folder.mkdir()
    for path in (root / "masks").glob("*.png"):
        labels = torch.from_numpy(np.array(Image.open(path)))
        for number in range(len(CLASSES)):
            mask = (labels == number + 1).float()[None, None]
            small = F.interpolate(mask, (50, 50), mode="bilinear")[0, 0]
            torch.save(small, folder / f"{path.stem}--{number}.pt")
    return folder


def tiny_recipe(root: Path, method: str = "mlc", **sections: dict[str, Any]) -> Recipe:
    """A recipe of a few steps on the shapes, with a random ResNet-18; sections override."""
    settings: dict[str, Any] = {
        "about": "shapes",
        "model": {"method": method, "encoder": "resnet18", "weights": "random"},
        "data": {"set": "folder", "root": str(root), "folds": "random", "reserved": 0.25},
        "transform": {"kind": "square", "size": 32, "flip": 0.5},
        "optimiser": {"lr": 0.01},
        "run": {"steps": 6, "batch": 2},
        "checkpoints": {"every": 2},
        "log": {"every": 2, "workers": 0},
    }
    settings["model"]["layers"] = ["layer2"]
    for name, values in sections.items():
        settings[name] = {**settings.get(name, {}), **values}
    return recipe_from(settings)
