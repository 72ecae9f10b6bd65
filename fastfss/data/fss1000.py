"""FSS-1000: a thousand classes of ten images each (Li et al., CVPR 2020)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastfss.data.index import Pair, Progress, Scanned, check_equal_sizes, read_rgb, scan
from fastfss.data.list_digests import PUBLISHED_LISTS
from fastfss.data.lists import lines_digest, read_names
from fastfss.data.pixels import decoding
from fastfss.data.sets import Item, MaskSet
from fastfss.errors import expected

# part -> HSNet's name of it, and the first class id. HSNet numbers from 0, we from 1.
PARTS = {"train": ("trn", 1), "val": ("val", 521), "test": ("test", 761)}
SPLITS = "splits"

_PLACES = ("FSS-1000", "fewshot_data", ".")
# Files of a part's list, at these places below the set's folder; the last is the authors' own.
_LIST_FILES = {
    "train": ("trn.txt", "train.txt"),
    "val": ("val.txt",),
    "test": ("test.txt", "fss_test_set.txt"),
}
# Grey levels from here on are the object, as published.
_OBJECT = 128


def open_fss1000(
    root: Path,
    part: str = "val",
    lists: str | Path | None = None,
    own_lists: bool = False,
    progress: Progress | None = None,
) -> FSS1000:
    """Open FSS-1000.

    Parts: ``train``, ``val`` and ``test`` are HSNet's 520, 240 and 240 classes, numbered 1..520,
    521..760 and 761..1000 by name; ``all`` has every folder, numbered from 1.

    Args:
        root: holds ``FSS-1000/CLASS/N.jpg`` and ``N.png``, or is that folder.
        part: one of the above.
        lists: the folder of the class lists: ``trn.txt``, ``val.txt``, ``test.txt`` of HSNet, or
            ``fss_test_set.txt`` of the authors. By default ``splits/`` in the set's folder, and
            that folder itself.
        own_lists: take lists that are not the published ones. Classes are then numbered by their
            places among all folders.
        progress: called while masks are read for the first time.

    Raises:
        FileNotFoundError: no such folder or list; it is named.
        ValueError: an unknown part, a list that is not the published one, a class of a list that
            is not there, an image without a mask.
    """
    folder = find_fss1000(root)
    if part not in (*PARTS, "all"):
        raise expected("part", f"one of {', '.join(PARTS)}, all", repr(part))
    everything = dict(enumerate(class_folders(folder), start=1))
    if part == "all":
        return FSS1000(folder, everything, progress)
    names = read_class_list(folder, part, None if lists is None else Path(lists), own_lists)
    for name in names:
        if name not in everything.values():
            raise FileNotFoundError(f"'{folder / name}': no such folder; the {part} list has it")
    if own_lists:
        classes = {number: name for number, name in everything.items() if name in names}
    else:
        classes = dict(enumerate(names, start=PARTS[part][1]))
    return FSS1000(folder, classes, progress)


class FSS1000(MaskSet):
    """FSS-1000; see `open_fss1000`."""

    name = "fss1000"
    ignores = False

    def __init__(
        self, root: Path, classes: Mapping[int, str], progress: Progress | None = None
    ) -> None:
        self.root, self.classes = root, classes
        pairs: list[Pair] = []
        self._own: list[int] = []
        for number, name in self.classes.items():
            # As text, like the published loader: 1, 10, 2, ...
            images = sorted(path.stem for path in (root / name).glob("*.jpg"))
            if not images:
                raise expected(f"folder '{root / name}'", "images 1.jpg, 2.jpg, ...", "none")
            pairs += [Pair(f"{name}/{one}.jpg", f"{name}/{one}.png") for one in images]
            self._own += [number] * len(images)
        scanned = scan(root, pairs, _read_pair, "fss1000", progress)
        self.items = tuple(
            Item(
                pair.image.removesuffix(".jpg"),
                root / pair.image,
                root / pair.mask,
                {number: one.labels[1]} if 1 in one.labels else {},
                one.size,
            )
            for pair, number, one in zip(pairs, self._own, scanned, strict=True)
        )

    def image(self, number: int) -> Tensor:
        """As `MaskSet.image`."""
        return read_rgb(self.items[number].image)

    def labels(self, number: int) -> Tensor:
        """As `MaskSet.labels`; a ValueError, for there are too many classes.

        A part of no more classes than 254 still numbers them beyond a uint8.
        """
        self.check_labels()
        return self.mask(number, self._own[number]) * self._own[number]

    def mask(self, number: int, cls: int) -> Tensor:
        """As `MaskSet.mask`; of a class other than the image's own nothing is object."""
        self.check_class(cls)
        mask = _read_mask(self.items[number].mask)
        return mask if cls == self._own[number] else torch.zeros_like(mask)


def find_fss1000(root: Path) -> Path:
    """The folder of the class folders, at or below a root.

    Raises:
        FileNotFoundError: there is none.
    """
    for place in _PLACES:
        if any((root / place).glob("*/1.jpg")):
            return root / place
    raise FileNotFoundError(
        f"root '{root}': expected FSS-1000/CLASS/1.jpg, found none; fastfss data prepare fss1000 "
        "makes it from the official archive"
    )


def class_folders(folder: Path) -> list[str]:
    """The classes of a set's folder, by name."""
    return sorted(path.parent.name for path in folder.glob("*/1.jpg"))


def read_class_list(
    folder: Path, part: str, lists: Path | None = None, own_lists: bool = False
) -> list[str]:
    """The classes of a part, by name, from a list file that has the published digest.

    Args:
        folder: the set's.
        part: ``train``, ``val`` or ``test``.
        lists: where the file lies; by default in ``splits/`` or in the folder.
        own_lists: take any digest.

    Raises:
        FileNotFoundError: no list; the message says which file is wanted.
        ValueError: other names than published.
    """
    path = find_class_list(part, [lists] if lists is not None else [folder / SPLITS, folder])
    if path is None:
        origin = "HSNet's repository (data/splits/fss)"
        if part == "test":
            origin += " or fss_test_set.txt of HKUSTCV/FSS-1000"
        wanted = (lists or folder / SPLITS) / _LIST_FILES[part][0]
        raise FileNotFoundError(f"'{wanted}': no such list; take it from {origin}")
    names = read_names(path)
    if not own_lists:
        check_class_list(path, part, names)
    return sorted(set(names))


def find_class_list(part: str, folders: Sequence[Path]) -> Path | None:
    """The list file of a part in the first folder that has one."""
    files = (folder / file for folder in folders for file in _LIST_FILES[part])
    return next((path for path in files if path.is_file()), None)


def check_class_list(path: Path, part: str, names: Sequence[str]) -> None:
    """Raise a ValueError unless names are the published ones, in any order."""
    published = PUBLISHED_LISTS[f"hsnet/fss/{PARTS[part][0]}"]
    if lines_digest(sorted(names)) != published.sorted:
        came = f"{len(names)} names" + " with another digest" * (len(names) == published.lines)
        raise expected(f"list '{path}'", f"the published {published.lines} classes", came)


def _read_pair(image: Path, mask: Path) -> Scanned:
    with decoding(f"mask '{mask}'"), Image.open(mask) as opened:
        size = (opened.height, opened.width)
        counts = opened.convert("L").histogram()
    with decoding(f"image '{image}'"), Image.open(image) as opened:
        own = (opened.height, opened.width)
    check_equal_sizes(image, own, mask, size)
    objects = sum(counts[_OBJECT:])
    labels = {0: size[0] * size[1] - objects, 1: objects}
    return Scanned(size, {label: count for label, count in labels.items() if count})


def _read_mask(mask: Path) -> Tensor:
    with decoding(f"mask '{mask}'"), Image.open(mask) as opened:
        grey = np.asarray(opened.convert("L"))
    return torch.from_numpy((grey >= _OBJECT).astype(np.uint8))
