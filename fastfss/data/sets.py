"""Data sets: images with masks of numbered classes, whatever their layout on disk."""

from __future__ import annotations

import hashlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastfss.data.masks import IGNORED
from fastfss.errors import expected, expected_kind

# uint8 labels: 0 is background, 255 ignored.
MOST_CLASSES = 254


@dataclass(frozen=True)
class Item:
    """One image of a set.

    Attributes:
        name: unique and stable in the set, for example ``2007_000032``.
        image: its file.
        mask: the file of its mask, or what the set's own reader needs.
        pixels: class id -> number of its pixels in the mask; classes present only.
        size: height and width, where the set knows them.
    """

    name: str
    image: Path
    mask: Path
    pixels: Mapping[int, int]
    size: tuple[int, int] | None = None


class MaskSet(ABC):
    """Images with masks of numbered classes.

    Attributes:
        name: of the kind of set: ``pascal``, ``coco``, ``fss1000``, ``folder``.
        root: its folder.
        classes: id, from 1 -> name.
        items: the images.
        ignores: whether masks hold 255, pixels that count for nothing.
        overlaps: whether a pixel may belong to several classes, so that `labels` does not say all.
    """

    name: str
    root: Path
    classes: Mapping[int, str]
    items: Sequence[Item]
    ignores: bool
    overlaps: bool = False

    def index(self, minimum: int = 1) -> dict[int, list[int]]:
        """The images of each class.

        Args:
            minimum: the least number of pixels of the class.

        Returns:
            Class id -> numbers of its items, in the set's order. Every class is a key.
        """
        found: dict[int, list[int]] = {number: [] for number in self.classes}
        for place, item in enumerate(self.items):
            for number, pixels in item.pixels.items():
                if pixels >= minimum and self.offers(place, number):
                    found[number].append(place)
        return found

    def offers(self, number: int, cls: int) -> bool:
        """Whether an episode of the class may use the item, however few its pixels."""
        return True

    @abstractmethod
    def image(self, number: int) -> Tensor:
        """The image of an item: uint8 (3, H, W), RGB."""

    @abstractmethod
    def labels(self, number: int) -> Tensor:
        """The mask of an item: uint8 (H, W) of class ids, 0 background, 255 ignored.

        Raises:
            ValueError: the set has more classes than uint8 has labels.
        """

    def mask(self, number: int, cls: int) -> Tensor:
        """The mask of one class of an item: uint8 (H, W) of {0, 1, 255}."""
        self.check_class(cls)
        labels = self.labels(number)
        mask = (labels == cls).to(torch.uint8)
        return mask.masked_fill_(labels == IGNORED, IGNORED) if self.ignores else mask

    @cached_property
    def digest(self) -> str:
        """sha256 over what decides episodes: names and pixels of the items, in order."""
        content = hashlib.sha256()
        for place, item in enumerate(self.items):
            pixels = " ".join(
                f"{number}:{count}{'' if self.offers(place, number) else '-'}"
                for number, count in sorted(item.pixels.items())
            )
            content.update(f"{item.name}\t{pixels}\n".encode())
        return content.hexdigest()

    def check_class(self, cls: int) -> None:
        """Raise a ValueError unless it is a class of the set."""
        if cls not in self.classes:
            wanted = f"a class of {self.root} ({min(self.classes)}..{max(self.classes)})"
            raise expected("cls", wanted, str(cls))

    def check_labels(self) -> None:
        """Raise a ValueError if the classes do not fit a uint8 label map."""
        if max(self.classes) > MOST_CLASSES:
            wanted = f"class ids up to {MOST_CLASSES} for a label map; use mask(number, cls)"
            raise expected("labels", wanted, f"{max(self.classes)} in {self.root}")


# kind -> module and function (root, part, **options). The modules load when they are asked for.
_KINDS = {
    "coco": ("fastfss.data.coco", "open_coco"),
    "folder": ("fastfss.data.own_folder", "open_folder"),
    "fss1000": ("fastfss.data.fss1000", "open_fss1000"),
    "pascal": ("fastfss.data.pascal", "open_pascal"),
}


def list_sets() -> list[str]:
    """The kinds of sets that `open_set` opens."""
    return sorted(_KINDS)


def open_set(kind: str, root: str | Path, part: str = "val", **options: Any) -> MaskSet:
    """Open a data set that lies on this machine.

    The first time, all masks are read to count their pixels; the counts are kept, see
    `fastfss.data.index.scan`.

    Args:
        kind: ``folder`` for data of your own; see `list_sets`.
        root: its folder.
        part: which images, ``train`` or ``val`` and what else the set has; a folder of your own is
            one part, whatever this says.
        options: of the kind; see its function.

    Returns:
        The set.

    Raises:
        ValueError: an unknown kind, part or option, or files that do not fit; they are named.
        FileNotFoundError: something is missing; it is named.
    """
    if kind not in _KINDS:
        raise expected("kind", f"one of {', '.join(list_sets())}", repr(kind))
    module, function = _KINDS[kind]
    opener: Callable[..., MaskSet] = getattr(import_module(module), function)
    known = list(inspect.signature(opener).parameters)[2:]
    for option in options:
        if option not in known:
            wanted = f"one of {', '.join(known)}" if known else f"no options for {kind!r}"
            raise expected("options", wanted, repr(option))
    if not isinstance(root, str | Path):
        raise expected_kind("root", "a folder", type(root).__name__)
    root = Path(root)
    if not root.is_dir():
        came = "a file" if root.exists() else "no such folder"
        raise FileNotFoundError(f"root '{root}': expected the folder of a data set, got {came}")
    return opener(root, part, **options)
