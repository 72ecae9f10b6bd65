"""The photographs that the default weights are trained with, their masks and their splits."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]
# Frames of a video are alike: one of so many is taken.
FRAME_STEP = 6
# Classes that other sets test under another name: no split trains with them.
TESTED_ELSEWHERE = frozenset({"coco/apple", "coco/cow", "coco/elephant", "coco/sports ball"})
# What classes of caltech are in coco.
SAME = {
    "Faces": "person",
    "Motorbikes": "motorcycle",
    "airplanes": "airplane",
    "car_side": "car",
    "cellphone": "cell phone",
    "cougar_body": "cat",
    "dalmatian": "dog",
    "emu": "bird",
    "ferry": "boat",
    "flamingo": "bird",
    "flamingo_head": "bird",
    "garfield": "cat",
    "ibis": "bird",
    "ketch": "boat",
    "pigeon": "bird",
    "rooster": "bird",
    "schooner": "boat",
    "snoopy": "dog",
    "soccer_ball": "sports ball",
    "watch": "clock",
    "wild_cat": "cat",
    "windsor_chair": "chair",
}


@dataclass(frozen=True, eq=False)
class Photo:
    """A photograph with a mask of numbered things.

    Attributes:
        image: its file.
        mask: its mask's, None where there is none but one class is known.
        things: label in the mask -> name of the class, unique over all sets ("coco/cat").
    """

    image: Path
    mask: Path | None
    things: dict[int, str]

    def opened(self) -> Image.Image:
        """RGB."""
        return Image.open(self.image).convert("RGB")

    def labels(self) -> Pixels:
        """(H, W): 0 background, 255 ignored."""
        if self.mask is None:
            raise ValueError(f"{self.image}: not annotated")
        return np.array(Image.open(self.mask)).astype(np.uint8)


@dataclass(frozen=True)
class Split:
    """What a training may see.

    Attributes:
        photos: those of training.
        held_out: names of classes, or videos, that it must not see.
        tested: the files of the photographs that are kept for testing.
    """

    photos: tuple[Photo, ...]
    held_out: frozenset[str]
    tested: frozenset[Path]

    def seen(self, names: Iterable[str]) -> frozenset[str]:
        """Those of the classes that training may ask for."""
        return frozenset(names) - self.held_out


def read_photos(root: Path) -> dict[str, list[Photo]]:
    """The annotated and the bare photographs below a folder, by set.

    Args:
        root: holds clothing/ and coco_mini/ (images/, masks/, classes.txt, index.json), davis_mini/
            (JPEGImages/, Annotations/) and caltech101_images/ (a folder a class, no masks).
    """
    return {
        "clothing": _indexed(root / "clothing", "clothing"),
        "coco": _indexed(root / "coco_mini", "coco"),
        "davis": _videos(root / "davis_mini"),
        "caltech": [
            Photo(image, None, {1: f"caltech/{image.parent.name}"})
            for image in sorted((root / "caltech101_images").glob("*/*.jpg"))
        ],
    }


def make_split(photos: dict[str, list[Photo]], seed: int | None) -> Split:
    """Leave a fifth of the classes and videos, and photographs to test them on, out of training.

    Of clothing a third of the photographs is kept for testing; of coco all that show a class that
    is held out.

    Args:
        photos: of `read_photos`.
        seed: which split; None takes everything for training.
    """
    everything = [photo for photos_of_set in photos.values() for photo in photos_of_set]
    if seed is None:
        return Split(tuple(everything), frozenset(), frozenset())
    held_out: set[str] = set(TESTED_ELSEWHERE)
    for name in ("clothing", "coco", "davis"):
        classes = sorted({thing for photo in photos[name] for thing in photo.things.values()})
        random.Random(f"{name} 0").shuffle(classes)
        held_out.update(classes[seed % 5 :: 5])
    things = {thing for photo in photos["caltech"] for thing in photo.things.values()}
    held_out.update(name for name in things if in_coco(name) in held_out)
    clothing = photos["clothing"]
    apart = set(random.Random(f"photos {seed}").sample(clothing, len(clothing) // 3))
    apart |= {
        photo
        for name in ("coco", "davis", "caltech")
        for photo in photos[name]
        if held_out.intersection(photo.things.values())
    }
    kept = tuple(photo for photo in everything if photo not in apart)
    return Split(kept, frozenset(held_out), frozenset(photo.image for photo in apart))


def in_coco(name: str) -> str:
    """The class of coco that a class of caltech is, "coco/boat" for "caltech/ketch"."""
    own = name.split("/", 1)[1]
    return f"coco/{SAME.get(own, own)}"


def _indexed(root: Path, name: str) -> list[Photo]:
    lines = (root / "classes.txt").read_text().splitlines()
    numbered = lines[0].split(" ")[0].isdigit()
    names = {
        int(line.split(" ", 1)[0]) if numbered else number: line.split(" ", 1)[-1]
        if numbered
        else line
        for number, line in enumerate(lines, start=1)
    }
    numbers = {label: number for number, label in names.items()}
    index: dict[str, Sequence[str]] = json.loads((root / "index.json").read_text())
    things: dict[str, dict[int, str]] = {}
    for label, stems in index.items():
        for stem in stems:
            things.setdefault(stem, {})[numbers[label]] = f"{name}/{label}"
    return [
        Photo(root / "images" / f"{stem}.jpg", root / "masks" / f"{stem}.png", found)
        for stem, found in sorted(things.items())
    ]


def _videos(root: Path) -> list[Photo]:
    return [
        Photo(
            frame,
            root / "Annotations" / folder.name / f"{frame.stem}.png",
            {1: f"davis/{folder.name}"},
        )
        for folder in sorted((root / "JPEGImages").iterdir())
        for frame in sorted(folder.glob("*.jpg"))[::FRAME_STEP]
    ]
