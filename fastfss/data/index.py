"""The index of a data set: size and labels of every mask, kept between runs."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from fastfss.atomic import write_text_atomically
from fastfss.caching import cache_folder
from fastfss.data.masks import read_label_map
from fastfss.data.pixels import decoding
from fastfss.errors import expected

Progress: TypeAlias = Callable[[int, int], None]  # done, of how many

_VERSION = 1
_ORIENTATION = 274  # EXIF
# A killed scan loses at most what it has read since.
_SECONDS_BETWEEN_SAVES = 20.0
_AT_ONCE = 256
# So many are enough to see what is wrong with a set.
_MOST_PROBLEMS = 5


@dataclass(frozen=True)
class Scanned:
    """What the index knows of one image and its mask.

    Attributes:
        size: height and width.
        labels: label -> number of its pixels, 0 and 255 included; labels present only.
    """

    size: tuple[int, int]
    labels: Mapping[int, int]


@dataclass(frozen=True)
class Pair:
    """An image and its mask by their paths below the set's root, with "/"."""

    image: str
    mask: str


Reader: TypeAlias = Callable[[Path, Path], Scanned]


def scan(
    root: Path,
    pairs: Sequence[Pair],
    read: Reader,
    key: str,
    progress: Progress | None = None,
) -> list[Scanned]:
    """Count the labels of all masks, or take the counts of an earlier run.

    The counts are kept in ``.fastfss-KEY.json`` in the root, or, where that cannot be written, in
    the user's cache folder. A pair is read again if size or time of either file has changed.

    Args:
        root: the set's folder.
        pairs: the files.
        read: reads one pair: image, mask.
        key: tells apart the indexes of one root.
        progress: called with the number of pairs that are known, and how many there are.

    Returns:
        One for each pair, in order.

    Raises:
        FileNotFoundError: files are not there; the first are named.
        ValueError: images or masks are unreadable, or sizes differ; the first are named.
    """
    known = _Kept(root, key)
    problems: list[Exception] = []
    stamps: list[Stamp] = []
    for pair in pairs:
        try:
            stamps.append(_stamp(root, pair))
        except OSError as error:
            problems.append(error)
            _raise_from(problems, _MOST_PROBLEMS)
    _raise_from(problems)
    found: list[Scanned | None] = [
        known.get(pair, stamp) for pair, stamp in zip(pairs, stamps, strict=True)
    ]
    missing = [number for number, scanned in enumerate(found) if scanned is None]
    if progress is not None:
        progress(len(pairs) - len(missing), len(pairs))

    def one(number: int) -> tuple[int, Scanned | Exception]:
        try:
            return number, read(root / pairs[number].image, root / pairs[number].mask)
        except (OSError, ValueError) as error:
            return number, error

    saved, done = time.monotonic(), len(pairs) - len(missing)
    try:
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            for part in _chunks(missing, _AT_ONCE):
                for number, scanned in pool.map(one, part):
                    if isinstance(scanned, Exception):
                        problems.append(scanned)
                        continue
                    found[number] = scanned
                    known.add(pairs[number], stamps[number], scanned)
                _raise_from(problems, _MOST_PROBLEMS)
                done += len(part)
                if progress is not None:
                    progress(done, len(pairs))
                if time.monotonic() - saved > _SECONDS_BETWEEN_SAVES:
                    known.save()
                    saved = time.monotonic()
    finally:
        known.save()
    _raise_from(problems)
    return [scanned for scanned in found if scanned is not None]


def read_pair(image: Path, mask: Path) -> Scanned:
    """Count the labels of a mask of any kind; its image must have its size.

    Args:
        image: the image file; only its header is read. EXIF rotation counts.
        mask: the mask file.

    Raises:
        FileNotFoundError, ValueError: the file is named.
    """
    with decoding(f"mask '{mask}'"), Image.open(mask) as opened:
        size = (opened.height, opened.width)
        plain = opened.mode in ("1", "L", "P") and "exif" not in opened.info
        if plain:
            counts = dict(enumerate(opened.histogram()))
            if opened.mode == "1":
                counts = {0: counts[0], 1: counts[255]}
    if not plain:
        labels = read_label_map(mask)
        size = (labels.shape[0], labels.shape[1])
        if int(labels.max()) > 255:
            raise expected(f"mask '{mask}'", "labels up to 255", str(int(labels.max())))
        counts = dict(enumerate(np.bincount(labels.numpy().ravel()).tolist()))
    check_equal_sizes(image, image_size(image), mask, size)
    return Scanned(size, {label: count for label, count in counts.items() if count})


def read_labels(mask: Path) -> npt.NDArray[np.uint8]:
    """Read the labels that `read_pair` counts, (H, W) in memory of their own."""
    with decoding(f"mask '{mask}'"), Image.open(mask) as opened:
        if opened.mode in ("1", "L", "P") and "exif" not in opened.info:
            return np.array(opened, dtype=np.uint8)
    return read_label_map(mask).numpy().astype(np.uint8)


def read_index_pair(image: Path, mask: Path) -> Scanned:
    """Count the values of a grey or palette mask, as published loaders read it.

    A palette's indices count, not its colours; no EXIF rotation is applied to either file.

    Raises:
        FileNotFoundError, ValueError: the file is named; a mask of another mode is refused.
    """
    with decoding(f"mask '{mask}'"), Image.open(mask) as opened:
        mode, size = opened.mode, (opened.height, opened.width)
        counts = opened.histogram() if mode in ("L", "P") else []
    if not counts:
        raise _not_indices(mask, mode)
    with decoding(f"image '{image}'"), Image.open(image) as opened:
        own = (opened.height, opened.width)
    check_equal_sizes(image, own, mask, size)
    return Scanned(size, {label: count for label, count in enumerate(counts) if count})


def read_indices(mask: Path) -> npt.NDArray[np.uint8]:
    """Read the values that `read_index_pair` counts, (H, W) in memory of their own."""
    with decoding(f"mask '{mask}'"), Image.open(mask) as opened:
        mode = opened.mode
        values = np.array(opened, dtype=np.uint8) if mode in ("L", "P") else None
    if values is None:
        raise _not_indices(mask, mode)
    return values


def read_rgb(image: Path) -> Tensor:
    """Read an image as published loaders do, uint8 (3, H, W): RGB, without EXIF rotation."""
    with decoding(f"image '{image}'"), Image.open(image) as opened:
        pixels = np.array(opened.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _not_indices(mask: Path, mode: str) -> ValueError:
    wanted = "a grey or palette image whose values are classes"
    return expected(f"mask '{mask}'", wanted, f"mode {mode}")


def image_size(image: Path) -> tuple[int, int]:
    """Height and width of an image file as it is seen, EXIF rotation applied."""
    with decoding(f"image '{image}'"), Image.open(image) as opened:
        turned = opened.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
        return (opened.width, opened.height) if turned else (opened.height, opened.width)


def _raise_from(problems: Sequence[Exception], least: int = 1) -> None:
    """Raise one error for all problems if there are so many."""
    if len(problems) < least:
        return
    if len(problems) == 1:
        raise problems[0]
    kind = FileNotFoundError if isinstance(problems[0], FileNotFoundError) else ValueError
    raise kind("; ".join(str(problem) for problem in problems[:_MOST_PROBLEMS]))


def check_equal_sizes(image: Path, own: tuple[int, int], mask: Path, size: tuple[int, int]) -> None:
    """Raise a ValueError that names both unless a mask has its image's height and width."""
    if own != size:
        wanted = f"{own[0]} rows x {own[1]} columns as its image '{image}' has"
        raise expected(f"mask '{mask}'", wanted, f"{size[0]} x {size[1]}")


Stamp: TypeAlias = "tuple[int, int, int, int]"


def _stamp(root: Path, pair: Pair) -> Stamp:
    """Size and time of the image and of the mask."""
    stamp: list[int] = []
    for name in (pair.image, pair.mask):
        try:
            status = (root / name).stat()
        except FileNotFoundError:
            raise FileNotFoundError(f"'{root / name}': no such file") from None
        stamp += [status.st_size, status.st_mtime_ns]
    return stamp[0], stamp[1], stamp[2], stamp[3]


class _Kept:
    """The index file: `image|mask` -> [stamp (4), height, width, labels]."""

    def __init__(self, root: Path, key: str) -> None:
        digest = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]
        self.places = (
            root / f".fastfss-{key}.json",
            cache_folder() / "sets" / f"{digest}-{key}.json",
        )
        self.entries: dict[str, list[Any]] = {}
        for place in self.places:
            self.entries.update(_entries(place))
        self.changed = False

    def get(self, pair: Pair, stamp: Stamp) -> Scanned | None:
        entry = self.entries.get(f"{pair.image}|{pair.mask}")
        if entry is None or tuple(entry[:4]) != stamp:
            return None
        return Scanned((entry[4], entry[5]), {int(n): count for n, count in entry[6].items()})

    def add(self, pair: Pair, stamp: Stamp, scanned: Scanned) -> None:
        self.entries[f"{pair.image}|{pair.mask}"] = [*stamp, *scanned.size, dict(scanned.labels)]
        self.changed = True

    def save(self) -> None:
        if not self.changed:
            return
        text = json.dumps({"version": _VERSION, "entries": self.entries}, separators=(",", ":"))
        for place in self.places[0 if _is_writable(self.places[0].parent) else 1 :]:
            # A set that cannot be kept is read again next time.
            with suppress(OSError):
                if place == self.places[1]:
                    place.parent.mkdir(parents=True, exist_ok=True)
                write_text_atomically(place, text)
                break
        self.changed = False


def _is_writable(folder: Path) -> bool:
    """Whether the folder's mode lets anyone write. Root may write anywhere, but should not."""
    return bool(folder.stat().st_mode & 0o222)


def _entries(place: Path) -> dict[str, list[Any]]:
    """The entries of an index file; none if it is absent, damaged or of another version."""
    with suppress(OSError, ValueError):
        content = json.loads(place.read_text(encoding="utf-8"))
        if isinstance(content, dict) and content.get("version") == _VERSION:
            entries = content.get("entries")
            if isinstance(entries, dict) and all(map(_is_entry, entries.values())):
                return entries
    return {}


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, list) and len(entry) == 7 and isinstance(entry[6], dict)


def _chunks(numbers: Iterable[int], size: int) -> Iterable[list[int]]:
    rest = iter(numbers)
    while part := list(islice(rest, size)):
        yield part
