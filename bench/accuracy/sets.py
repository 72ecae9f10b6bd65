"""Annotated folders as few-shot sets: class -> images with masks."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Annotated:
    """An image, its mask, and the label in the mask that is the class (None: any but 0)."""

    image: Path
    mask: Path
    value: int | None


@dataclass(frozen=True)
class Episode:
    """One query and its supports."""

    category: str
    supports: tuple[Annotated, ...]
    query: Annotated


Categories = dict[str, list[Annotated]]


def read_set(root: Path, names: tuple[str, ...] | None = None) -> Categories:
    """Read a folder in one of two layouts.

    `<class>/<n>.jpg` beside `<class>/<n>.png` (FSS-1000), or images/ and masks/ with an index.json
    (class -> image stems) and a classes.txt (line number, or the number that a line begins with =
    label).

    Args:
        root: the folder.
        names: the classes to take; all by default.
    """
    if (root / "index.json").is_file():
        found = _read_indexed(root)
    else:
        found = {
            folder.name: [
                Annotated(image, image.with_suffix(".png"), None)
                for image in sorted(folder.glob("*.jpg"))
            ]
            for folder in sorted(root.iterdir())
            if folder.is_dir()
        }
    return found if names is None else {name: found[name] for name in names}


def _read_indexed(root: Path) -> Categories:
    labels: dict[str, int] = {}
    for number, line in enumerate((root / "classes.txt").read_text().splitlines(), start=1):
        first, _, rest = line.partition(" ")
        # "3 belt" states the number; "dining table" does not.
        labels[rest if first.isdigit() else line] = int(first) if first.isdigit() else number
    index = json.loads((root / "index.json").read_text())
    return {
        name: [
            Annotated(root / "images" / f"{stem}.jpg", root / "masks" / f"{stem}.png", labels[name])
            for stem in stems
        ]
        for name, stems in index.items()
    }


def episodes(categories: Categories, *, shots: int, queries: int, seed: int) -> Iterator[Episode]:
    """Up to `queries` episodes a class; classes with fewer than shots + 1 images are left out.

    A class's episodes depend on its name and the seed alone.
    """
    for name, images in categories.items():
        if len(images) <= shots:
            continue
        rng = random.Random(f"{seed} {name}")
        for query in rng.sample(images, min(queries, len(images))):
            others = [image for image in images if image != query]
            yield Episode(name, tuple(rng.sample(others, shots)), query)
