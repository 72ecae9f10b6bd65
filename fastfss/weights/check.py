"""Whether the package's own weights are whole and work here: `python -m fastfss.weights.check`.

Compares the file's digest, then segments a few drawn scenes and compares the mean IoU with what it
was when the weights were made. Exits with 1 where something differs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from fastfss.weights.packaged import PACKAGED, digest_of, packaged_weights

SIDE = 192
SHAPES = ("disc", "star", "bar", "ring")
TOLERANCE = 1.0  # points of mean IoU: other CPUs sum in another order
# Mean IoU in percent of the drawn scenes.
EXPECTED = {"default.safetensors": 93.9}
Pixels = npt.NDArray[np.uint8]


def scene(shape: str, number: int) -> tuple[Pixels, Pixels]:
    """A drawn thing before another one: image (192, 192, 3), mask (192, 192) of {0, 1}."""
    rng = np.random.default_rng([SHAPES.index(shape), number])
    coarse = rng.integers(60, 200, (12, 12, 3), dtype=np.uint8)
    ground = Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    other = SHAPES[(SHAPES.index(shape) + 1) % len(SHAPES)]
    left = int(rng.integers(0, 2))
    for kind, place in ((other, 1 - left), (shape, left)):
        centre = (SIDE * (0.28 + 0.44 * place), SIDE * rng.uniform(0.35, 0.65))
        mask = _drawn(kind, centre, SIDE * rng.uniform(0.16, 0.22), rng.uniform(0, np.pi))
        ground.paste(_texture(kind, rng), (0, 0), mask)
    return np.asarray(ground), (np.asarray(mask) > 127).astype(np.uint8)


def _drawn(kind: str, centre: tuple[float, float], radius: float, angle: float) -> Image.Image:
    mask = Image.new("L", (SIDE, SIDE), 0)
    draw = ImageDraw.Draw(mask)
    x, y = centre
    if kind in ("disc", "ring"):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
        if kind == "ring":
            inner = 0.55 * radius
            draw.ellipse((x - inner, y - inner, x + inner, y + inner), fill=0)
        return mask
    turns = np.arange(10) * np.pi / 5 + angle
    lengths = np.where(np.arange(10) % 2, 0.45, 1.15) * radius
    corners = np.stack([x + lengths * np.cos(turns), y + lengths * np.sin(turns)], axis=1)
    if kind == "bar":
        along = np.array([np.cos(angle), np.sin(angle)])
        across = 0.35 * np.array([-along[1], along[0]])
        ends = np.array([along + across, along - across, -along - across, -along + across])
        corners = np.array(centre) + 1.1 * radius * ends
    draw.polygon([(float(a), float(b)) for a, b in corners], fill=255)
    return mask


def _texture(kind: str, rng: np.random.Generator) -> Image.Image:
    """Each kind has its colour and pattern."""
    y, x = np.mgrid[:SIDE, :SIDE]
    pattern = {
        "disc": np.sin(x / 3) * np.sin(y / 3),
        "star": np.sin((x + y) / 4),
        "bar": np.sin(y / 2.5),
        "ring": np.zeros((SIDE, SIDE)),
    }[kind]
    colour = {
        "disc": (210, 60, 50),
        "star": (230, 200, 60),
        "bar": (60, 90, 200),
        "ring": (70, 160, 80),
    }[kind]
    light = 1 + 0.25 * pattern + rng.normal(0, 0.03, (SIDE, SIDE))
    pixels = np.array(colour) * light[:, :, None]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def ious(model: Any) -> Iterator[float]:
    """The IoU of each of the drawn queries, in percent, after one shot.

    Args:
        model: a FewShotSegmenter in eval mode.
    """
    for shape in SHAPES:
        task = model.fit([scene(shape, 0)], name=shape)
        for number in (1, 2, 3):
            image, mask = scene(shape, number)
            found = model.predict(image, task).mask()
            yield 100 * float((found & (mask == 1)).sum() / (found | (mask == 1)).sum())


def main() -> int:
    """The program."""
    argparse.ArgumentParser(
        prog="python -m fastfss.weights.check", description=__doc__
    ).parse_args()
    import fastfss

    wrong = False
    for file, digest in PACKAGED.items():
        path = packaged_weights(file)
        came = digest_of(path)
        whole = came == digest
        print(f"{file}: {path.stat().st_size / 1e6:.1f} MB, sha256 {came[:16]}: ", end="")
        print("as made" if whole else f"DIFFERS from {digest[:16]}: install fastfss again")
        mean = float(np.mean(list(ious(fastfss.create_model(path.stem)))))
        near = abs(mean - EXPECTED[file]) <= TOLERANCE
        print(f"{file}: mean IoU {mean:.1f} on {3 * len(SHAPES)} drawn scenes: ", end="")
        print("as made" if near else f"DIFFERS from {EXPECTED[file]:.1f}")
        wrong |= not (whole and near)
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
