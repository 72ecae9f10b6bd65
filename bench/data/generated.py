"""A few-shot set that anyone can make: eight textured things in clutter, at every scale, occluded.

    python -m bench.data.generated --root ROOT [--images 120] [--seed 0]
    fastfss eval --protocol classes --data ROOT --method ssp --backbone resnet18 ...

A class is an outline, a texture, and a hue of one of its two colours, roughly; the other colour is
drawn for every thing anew. Things of other classes and of none lie beside it, the latter with
outlines of classes and half of them with textures of classes, in colours of their own. Scales
differ by a factor of four; later things cover earlier ones; light, blur and noise vary. The folder
is one of label maps, as `fastfss.data.open_set("folder", ROOT)` reads it: 0 background, 1 to 8 the
classes. The same seed gives the same pixels.
"""

from __future__ import annotations

import argparse
import colorsys
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Floats = NDArray[np.float64]
Draw = np.random.Generator

HEIGHT, WIDTH = 240, 320
# Radii as shares of the height.
SMALLEST, LARGEST = 0.12, 0.45
# A class is listed for an image where so many of its pixels are seen, and so much of the thing.
LEAST_PIXELS, LEAST_SEEN = 300, 0.4

OUTLINES = ("ellipse", "star", "gear", "bean", "square", "triangle")
TEXTURES = ("stripes", "checks", "dots", "rings", "blotches", "waves", "speckles", "lattice")
# Class n has outline n (from the first again after the last), texture n and hue n / 8.
CLASSES = tuple(f"{OUTLINES[n % len(OUTLINES)]}-{texture}" for n, texture in enumerate(TEXTURES))
HUE_SPREAD = 0.05


def smooth_noise(draw: Draw, shape: tuple[int, int], cell: int) -> Floats:
    """Noise of 0 to 1 whose grains are about `cell` pixels wide."""
    coarse = draw.random((shape[0] // cell + 3, shape[1] // cell + 3)).astype(np.float32)
    grown = Image.fromarray(coarse).resize(
        (coarse.shape[1] * cell, coarse.shape[0] * cell), Image.Resampling.BICUBIC
    )
    return np.clip(
        np.asarray(grown, dtype=float)[cell : cell + shape[0], cell : cell + shape[1]], 0, 1
    )


def radius_at(outline: int, angle: Floats) -> Floats:
    """The outline's distance from its centre, at most about 1."""
    kinds: tuple[Callable[[Floats], Floats], ...] = (
        lambda a: 0.6 / np.sqrt((0.6 * np.cos(a)) ** 2 + np.sin(a) ** 2),
        lambda a: 0.68 + 0.3 * np.cos(5 * a),
        lambda a: 0.82 + 0.14 * np.sign(np.cos(9 * a)),
        lambda a: 0.72 + 0.24 * np.cos(a) - 0.16 * np.cos(2 * a),
        lambda a: 0.72 / np.maximum(np.abs(np.cos(a)), np.abs(np.sin(a))),
        lambda a: 0.5 / np.cos((a % (2 * np.pi / 3)) - np.pi / 3),
    )
    return kinds[outline](angle)


def pattern(texture: int, x: Floats, y: Floats, noise: Floats) -> Floats:
    """The texture, 0 to 1, in a thing's own coordinates, which are -1 to 1 inside."""
    kinds: tuple[Callable[[], Floats], ...] = (
        lambda: np.sin(14 * x) > 0,
        lambda: (np.sin(9 * x) > 0) ^ (np.sin(9 * y) > 0),
        lambda: np.sin(11 * x) * np.sin(11 * y) > 0.35,
        lambda: np.sin(16 * np.hypot(x, y)) > 0,
        lambda: noise > 0.52,
        lambda: np.sin(8 * y + 2.5 * np.sin(6 * x)) > 0,
        lambda: np.sin(23 * x + 3 * np.sin(17 * y)) * np.sin(29 * y + 2 * np.sin(19 * x)) > 0.1,
        lambda: np.maximum(np.sin(10 * (x + y)), np.sin(10 * (x - y))) > 0.85,
    )
    return kinds[texture]().astype(float)


def colour(draw: Draw, hue: float | None = None, most: float = 0.95) -> Floats:
    """A colour of about a hue, or of any; `most` is its largest saturation."""
    chosen = draw.random() if hue is None else hue + draw.uniform(-HUE_SPREAD, HUE_SPREAD)
    least = 0.0 if hue is None else 0.45
    return np.array(
        colorsys.hsv_to_rgb(chosen % 1, draw.uniform(least, most), draw.uniform(0.25, 1))
    )


def colours(draw: Draw, hue: float | None = None) -> tuple[Floats, Floats]:
    """Two colours that can be told apart, the first of a class's hue if one is given."""
    first, second = colour(draw, hue), colour(draw)
    while np.abs(first - second).sum() < 0.7:
        second = colour(draw)
    return first, second


def background(draw: Draw) -> Floats:
    """Two or three grounds of several grains, each between two dull colours, (H, W, 3)."""
    made = np.zeros((HEIGHT, WIDTH, 3))
    for number in range(draw.integers(2, 4)):
        grain = np.zeros((HEIGHT, WIDTH))
        for cell, share in ((40, 0.5), (12, 0.3), (3, 0.2)):
            grain += share * smooth_noise(draw, (HEIGHT, WIDTH), cell)
        first, second = colour(draw, most=0.5), colour(draw, most=0.5)
        ground = first + grain[..., None] * (second - first)
        part = smooth_noise(draw, (HEIGHT, WIDTH), 70) > (0 if number == 0 else 0.5)
        made = np.where(part[..., None], ground, made)
    return made


def place(draw: Draw, picture: Floats, label: int | None) -> NDArray[np.bool_]:
    """Draw a thing of a class, or of none, over what is there; the pixels that it covers."""
    outline = int(draw.integers(len(OUTLINES))) if label is None else label % len(OUTLINES)
    texture, hue = label, None if label is None else label / len(CLASSES)
    if label is None and draw.random() < 0.5:
        texture = int(draw.integers(len(TEXTURES)))
    radius = HEIGHT * SMALLEST * (LARGEST / SMALLEST) ** draw.random()
    centre = draw.uniform((0, 0), (HEIGHT, WIDTH))
    turn, squeeze = draw.uniform(0, 2 * np.pi), draw.uniform(0.75, 1.3)
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(float)
    y, x = (y - centre[0]) / radius, (x - centre[1]) / radius
    x, y = (np.cos(turn) * x - np.sin(turn) * y) * squeeze, np.sin(turn) * x + np.cos(turn) * y
    covered = np.hypot(x, y) < radius_at(outline, np.arctan2(y, x))
    noise = smooth_noise(draw, covered.shape, max(2, int(radius / 4)))
    first, second = colours(draw, hue)
    part = noise if texture is None else pattern(texture, x, y, noise)
    surface = first + part[..., None] * (second - first)
    # Rounded: darker at one side.
    light = 1 - 0.35 * np.clip(x * np.cos(turn) + y * np.sin(turn), -0.3, 1)
    picture[covered] = (surface * light[..., None])[covered]
    return covered


def scene(seed: int, number: int) -> tuple[Image.Image, NDArray[np.uint8], list[int]]:
    """Image, label map, and the labels that are large enough and not too far covered."""
    draw = np.random.default_rng((seed, number))
    picture = background(draw)
    labels = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    # Every class is drawn about as often as any other; one more thing of a class, two to four
    # of none.
    chosen = [number % len(CLASSES), int(draw.integers(len(CLASSES)))]
    things: list[int | None] = [*dict.fromkeys(chosen), *([None] * int(draw.integers(2, 5)))]
    whole: dict[int, int] = {}
    for index in draw.permutation(len(things)):
        label = things[index]
        covered = place(draw, picture, label)
        labels[covered] = 0 if label is None else label + 1
        if label is not None:
            whole[label + 1] = int(covered.sum())
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    slope = draw.uniform(-0.3, 0.3, 2)
    picture *= (1 + slope[0] * (y / HEIGHT - 0.5) + slope[1] * (x / WIDTH - 0.5))[..., None]
    picture += draw.normal(0, draw.uniform(0.01, 0.05), picture.shape)
    image = Image.fromarray((np.clip(picture, 0, 1) * 255).astype(np.uint8))
    image = image.filter(ImageFilter.GaussianBlur(float(draw.uniform(0, 1.2))))
    seen = {label: int((labels == label).sum()) for label in whole}
    large = [
        label
        for label, area in whole.items()
        if seen[label] >= max(LEAST_PIXELS, LEAST_SEEN * area)
    ]
    return image, labels, sorted(large)


def write_set(root: Path, images: int = 120, seed: int = 0) -> None:
    """Write the folder; images already there are written anew."""
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True, exist_ok=True)
    index: dict[str, list[str]] = {name: [] for name in CLASSES}
    for number in range(images):
        image, labels, large = scene(seed, number)
        stem = f"{number:04d}"
        image.save(root / "images" / f"{stem}.jpg", quality=92)
        Image.fromarray(labels).save(root / "masks" / f"{stem}.png")
        for label in large:
            index[CLASSES[label - 1]].append(stem)
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in index))
    (root / "index.json").write_text(json.dumps(index, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--images", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    write_set(chosen.root, chosen.images, chosen.seed)
    print(f"{chosen.root}: {chosen.images} images of {len(CLASSES)} classes")


if __name__ == "__main__":
    main()
