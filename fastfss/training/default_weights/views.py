"""Augmented views of the photographs, encoded once and kept on disk.

The encoder is frozen, so that a view costs its encoding once instead of once a step.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageEnhance
from torch import Tensor

from fastfss.data.masks import IGNORED
from fastfss.encoders import Encoder
from fastfss.errors import import_extra
from fastfss.training.default_weights.photos import Photo, Pixels, Split
from fastfss.training.default_weights.pseudo_masks import object_mask

SIDE = 320  # of a view
LABEL_SIDE = SIDE // 2
SHORTER = (224, 448)  # the range of a photograph's shorter side
LEAST = 0.004  # of a view's pixels: what is smaller is not asked for
WHOLE = 250  # the label of everything that is annotated in a photograph of garments
PASTED = 251

Maps = dict[str, npt.NDArray[np.float16]]


@dataclass(frozen=True)
class View:
    """One view: where it comes from and what it shows.

    Attributes:
        source: the photograph, by number; views of one source are never the only pair of a class
            that has others.
        things: label in the view's mask -> class.
    """

    source: int
    things: dict[int, str]


@dataclass(frozen=True)
class Counts:
    """How many views are made of each photograph."""

    clothing: int = 4
    coco: int = 16
    davis: int = 4
    caltech: int = 3
    pasted: int = 1600  # in all


class Views:
    """Encoded views.

    Attributes:
        views: what each is.
        maps: of the encoder, name -> (N, C, h, w), float16.
        labels: (N, 160, 160).
    """

    def __init__(self, folder: Path) -> None:
        about = json.loads((folder / "views.json").read_text())
        self.views = [
            View(one["source"], {int(label): name for label, name in one["things"].items()})
            for one in about["views"]
        ]
        self.maps: Maps = {
            name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in about["maps"]
        }
        self.labels: Pixels = np.load(folder / "labels.npy", mmap_mode="r")


def allowed_views(views: Views, photos: dict[str, list[Photo]], split: Split) -> list[int]:
    """The numbers of the views that training may see."""
    places, kept = _places(photos), {photo.image for photo in split.photos}
    return [
        number
        for number, view in enumerate(views.views)
        if (
            places[view.source].image in kept
            if view.source < len(places)
            # Of what is pasted nothing else is known than what it shows.
            else not split.held_out.intersection(view.things.values())
        )
    ]


def held_out_views(views: Views, photos: dict[str, list[Photo]], split: Split) -> list[int]:
    """The numbers of the views of photographs that training does not see."""
    places, kept = _places(photos), {photo.image for photo in split.photos}
    return [
        number
        for number, view in enumerate(views.views)
        if view.source < len(places) and places[view.source].image not in kept
    ]


def _places(photos: dict[str, list[Photo]]) -> list[Photo]:
    return [photo for members in photos.values() for photo in members]


def make_views(
    photos: dict[str, list[Photo]], counts: Counts, seed: int
) -> Iterator[tuple[Image.Image, Pixels, View]]:
    """Views in order: image (320, 320), labels (160, 160), and what they are."""
    rng = random.Random(f"views {seed}")
    number = 0
    objects = {photo.image: object_mask(photo.opened()) for photo in photos["caltech"]}
    for name, members in photos.items():
        for photo in members:
            image = photo.opened()
            known = objects[photo.image] if photo.mask is None else photo.labels()
            if known is None:
                labels, things = _regions(image, f"{name}/{number}")
            else:
                labels, things = known, dict(photo.things)
                if name == "clothing":
                    things[WHOLE] = "clothing/whole"
            for _ in range(getattr(counts, name)):
                yield _view(image, labels, things, number, rng)
            number += 1
    kinds = [
        [p for p in members if objects.get(p.image, p) is not None] for members in photos.values()
    ]
    for _ in range(counts.pasted):
        photo, ground = rng.choice(rng.choice(kinds)), rng.choice(photos["caltech"])
        cut = objects[photo.image] if photo.mask is None else photo.labels()
        assert cut is not None
        yield _pasted(photo, cut, ground, number, rng)
        number += 1


def encode_views(
    encoder: Encoder,
    made: Iterator[tuple[Image.Image, Pixels, View]],
    total: int,
    names: Sequence[str],
    folder: Path,
) -> Views:
    """Encode views into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    views: list[View] = []
    store: dict[str, npt.NDArray[np.float16]] = {}
    labels = np.lib.format.open_memmap(
        folder / "labels.npy", mode="w+", dtype=np.uint8, shape=(total, LABEL_SIDE, LABEL_SIDE)
    )
    for start in range(0, total, 8):
        batch = [next(made) for _ in range(min(8, total - start))]
        with torch.inference_mode():
            maps = encoder(_images([image for image, _, _ in batch], encoder), names)
        for name, one in maps.items():
            if name not in store:
                shape = (total, *one.shape[1:])
                path = folder / f"{name}.npy"
                store[name] = np.lib.format.open_memmap(
                    path, mode="w+", dtype=np.float16, shape=shape
                )
            store[name][start : start + len(batch)] = one.half().numpy()
        labels[start : start + len(batch)] = np.stack([mask for _, mask, _ in batch])
        views += [view for _, _, view in batch]
    about = {"maps": list(names), "views": [asdict(view) for view in views]}
    (folder / "views.json").write_text(json.dumps(about))
    return Views(folder)


def _images(images: Sequence[Image.Image], encoder: Encoder) -> Tensor:
    stacked = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
    floats = stacked.permute(0, 3, 1, 2).float().div_(255)
    return encoder.normalization.apply(floats).to(memory_format=torch.channels_last)


def _view(
    image: Image.Image, labels: Pixels, things: dict[int, str], source: int, rng: random.Random
) -> tuple[Image.Image, Pixels, View]:
    """A random crop of a random size, mirrored half the time, with other light."""
    scale = rng.uniform(*SHORTER) / min(image.size)
    stretch = rng.uniform(0.9, 1.1)
    size = (round(image.width * scale * stretch), round(image.height * scale / stretch))
    image = image.resize(size, Image.Resampling.BILINEAR)
    mask = Image.fromarray(labels).resize(size, Image.Resampling.NEAREST)
    left, top = (rng.randint(min(0, side - SIDE), max(0, side - SIDE)) for side in size)
    box = (left, top, left + SIDE, top + SIDE)
    # Outside of the photograph nothing is known: the encoder sees grey, the loss nothing.
    frame = Image.new("RGB", (SIDE, SIDE), (127, 127, 127))
    frame.paste(image.crop(box) if left >= 0 and top >= 0 else image, (max(0, -left), max(0, -top)))
    known = Image.new("L", (SIDE, SIDE), IGNORED)
    known.paste(mask.crop(box) if left >= 0 and top >= 0 else mask, (max(0, -left), max(0, -top)))
    return _finished(frame, np.array(known), things, source, rng)


def _finished(
    frame: Image.Image, labels: Pixels, things: dict[int, str], source: int, rng: random.Random
) -> tuple[Image.Image, Pixels, View]:
    if rng.random() < 0.5:
        frame = frame.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        labels = labels[:, ::-1]
    for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        frame = change(frame).enhance(rng.uniform(0.7, 1.3))
    small = np.ascontiguousarray(labels[1::2, 1::2])
    counted = np.bincount(small.ravel(), minlength=256) / small.size
    counted[WHOLE] = counted[1:WHOLE].sum()
    shown = {label: name for label, name in things.items() if counted[label] >= LEAST}
    return frame, small, View(source, shown)


def _pasted(
    photo: Photo, labels: Pixels, ground: Photo, source: int, rng: random.Random
) -> tuple[Image.Image, Pixels, View]:
    """A thing cut out of one photograph on another one."""
    label, name = rng.choice(sorted(photo.things.items()))
    if name.startswith("clothing/") and rng.random() < 0.5:
        inside, name = (labels > 0) & (labels != IGNORED), "clothing/whole"
    else:
        inside = labels == label
    rows, columns = np.nonzero(inside.any(axis=1))[0], np.nonzero(inside.any(axis=0))[0]
    box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    thing = photo.opened().crop(box)
    cut = Image.fromarray((inside * 255).astype(np.uint8)).crop(box)
    longer = rng.uniform(0.25, 0.9) * SIDE
    scale = longer / max(thing.size)
    size = (max(4, round(thing.width * scale)), max(4, round(thing.height * scale)))
    angle = rng.uniform(-20, 20)
    thing = thing.resize(size, Image.Resampling.BICUBIC).rotate(angle, Image.Resampling.BICUBIC)
    cut = cut.resize(size, Image.Resampling.BICUBIC).rotate(angle, Image.Resampling.BICUBIC)
    back = ground.opened().resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    place = (
        rng.randint(-size[0] // 4, SIDE - 3 * size[0] // 4),
        rng.randint(-size[1] // 4, SIDE - 3 * size[1] // 4),
    )
    for change in (ImageEnhance.Brightness, ImageEnhance.Contrast):
        thing = change(thing).enhance(rng.uniform(0.7, 1.3))
    back.paste(thing, place, cut)
    mask = Image.new("L", (SIDE, SIDE), 0)
    mask.paste(PASTED, place, cut.point(lambda value: 255 * (value > 127)))
    return _finished(back, np.array(mask), {PASTED: name}, source, rng)


def _regions(image: Image.Image, name: str) -> tuple[Pixels, dict[int, str]]:
    """Regions of like colour, each a class of its own that no other photograph has."""
    segmentation: Any = import_extra(
        "skimage.segmentation", extra="superpixels", purpose="the regions of photographs"
    )
    found = segmentation.felzenszwalb(np.asarray(image), scale=300, sigma=0.8, min_size=400)
    labels = np.minimum(found + 1, WHOLE - 1).astype(np.uint8)
    areas = np.bincount(labels.ravel(), minlength=256) / labels.size
    things = {
        int(label): f"region/{name}/{label}"
        for label in np.nonzero((areas > 0.02) & (areas < 0.5))[0]
    }
    return labels, things
