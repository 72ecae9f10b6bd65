"""Videos with masks of numbered objects: DAVIS 2016 and 2017.

Perazzi et al., CVPR 2016; Pont-Tuset et al., arXiv 1704.00675.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from fastfss.data.index import read_labels, read_rgb
from fastfss.data.pixels import decoding
from fastfss.errors import expected
from fastfss.reading import read_text

_PLACES = ("DAVIS", ".")
_YEARS = {2016: ("train", "val"), 2017: ("train", "val", "test-dev", "test-challenge")}


@dataclass(frozen=True)
class Video:
    """A sequence of frames, some or all with masks.

    Attributes:
        name: of the sequence.
        frames: their files, in order.
        annotations: number of the frame -> file of its mask.
        joined: whether all objects count as one, as in DAVIS 2016.
    """

    name: str
    frames: Sequence[Path]
    annotations: Mapping[int, Path]
    joined: bool = False

    def frame(self, number: int) -> Tensor:
        """A frame: uint8 (3, H, W), RGB."""
        return read_rgb(self.frames[number])

    def labels(self, number: int) -> Tensor:
        """The mask of a frame: uint8 (H, W), 0 background, n the n-th object.

        The values are those of the file. If 255 is the only value of the first mask but 0, or that
        mask has 1 bit, every value but 0 is object 1.

        Raises:
            ValueError: the frame has no mask, or it is in colours.
        """
        if number not in self.annotations:
            have = f"{len(self.annotations)} of {len(self.frames)} frames have one"
            raise expected("number", f"a frame of '{self.name}' with a mask ({have})", str(number))
        labels, _ = _read(self.annotations[number])
        if self.joined or self._is_binary:
            labels = (labels != 0).astype(np.uint8)
        return torch.from_numpy(labels)

    @cached_property
    def objects(self) -> tuple[int, ...]:
        """The objects of the first mask: those that are given to be followed."""
        if not self.annotations:
            return ()
        return tuple(int(n) for n in self.labels(min(self.annotations)).unique() if n)

    @cached_property
    def _is_binary(self) -> bool:
        labels, mode = _read(self.annotations[min(self.annotations)])
        return mode == "1" or set(np.unique(labels).tolist()) - {0} == {255}


@dataclass(frozen=True)
class VideoSet:
    """Videos of one part of a set.

    Attributes:
        name: ``davis2016`` or ``davis2017``.
        root: the folder.
        part: such as ``val``.
        videos: name -> video, in the list's order.
    """

    name: str
    root: Path
    part: str
    videos: Mapping[str, Video]


def open_davis(
    root: str | Path, part: str = "val", year: int = 2017, resolution: str = "480p"
) -> VideoSet:
    """Open DAVIS.

    Args:
        root: holds ``DAVIS/`` with ``JPEGImages``, ``Annotations`` and ``ImageSets``, or is it.
        part: ``train``, ``val``, of 2017 also ``test-dev`` and ``test-challenge``; ``all`` takes
            every sequence that is there, lists or not.
        year: 2016 joins the objects of a mask to one.
        resolution: the folder below ``JPEGImages``; sequences may also lie there directly.

    Raises:
        FileNotFoundError: a folder, list, sequence or mask is missing; it is named.
        ValueError: an unknown part or year.
    """
    if year not in _YEARS:
        raise expected("year", "2016 or 2017", str(year))
    if part not in (*_YEARS[year], "all"):
        raise expected("part", f"one of {', '.join(_YEARS[year])}, all", repr(part))
    folder = find_davis(Path(root))
    frames = _resolution(folder / "JPEGImages", resolution)
    masks = _resolution(folder / "Annotations", resolution)
    if part == "all":
        names = sorted(path.name for path in frames.iterdir() if path.is_dir())
    else:
        names = read_davis_list(folder, part, year, resolution)
    joined = year == 2016
    videos = {name: _video(name, frames / name, masks / name, joined) for name in names}
    return VideoSet(f"davis{year}", folder, part, videos)


def find_davis(root: Path) -> Path:
    """The folder with ``JPEGImages``, at or below a root.

    Raises:
        FileNotFoundError: there is none.
    """
    for place in _PLACES:
        if (root / place / "JPEGImages").is_dir():
            return root / place
    raise FileNotFoundError(
        f"root '{root}': expected DAVIS/JPEGImages, found none; fastfss data prepare davis makes "
        "it from the official archives"
    )


def read_davis_list(folder: Path, part: str, year: int, resolution: str = "480p") -> list[str]:
    """Names of the sequences of a part, in the list's order.

    Raises:
        FileNotFoundError: no list; the wanted ones are named.
        ValueError: a line of another form.
    """
    sets = folder / "ImageSets"
    # The archive of 2016 lists frames: /JPEGImages/480p/bear/00000.jpg /Annotations/...
    frames = sets / resolution / f"{part}.txt"
    path = sets / str(year) / f"{part}.txt"
    if not path.is_file() and year == 2016:
        path = frames
    if not path.is_file():
        raise FileNotFoundError(f"'{sets / str(year) / f'{part}.txt'}': no such list")
    names = []
    for line in read_text(path, f"'{path}'", encoding="utf-8-sig").split("\n"):
        words = line.split()
        if not words:
            continue
        named = PurePosixPath(words[0])
        if path == frames and len(named.parts) < 2:
            raise expected(f"list '{path}'", "paths of frames", repr(line))
        names.append(named.parent.name if path == frames else named.name)
    return list(dict.fromkeys(names))


def _resolution(folder: Path, resolution: str) -> Path:
    """The folder of the sequences: of a resolution, or without that level."""
    if (folder / resolution).is_dir():
        return folder / resolution
    found = (
        sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    )
    if not any(list((folder / name).glob("*.[jp][pn]g")) for name in found):
        came = ", ".join(found[:5]) or "nothing"
        raise FileNotFoundError(f"'{folder / resolution}': no such folder, only {came}")
    return folder


def _video(name: str, frames: Path, masks: Path, joined: bool) -> Video:
    files = sorted(frames.glob("*.jpg"))
    if not files:
        raise FileNotFoundError(f"'{frames}': no frames 00000.jpg, ... of a listed sequence")
    annotations = {
        number: masks / f"{file.stem}.png"
        for number, file in enumerate(files)
        if (masks / f"{file.stem}.png").is_file()
    }
    if 0 not in annotations:
        raise FileNotFoundError(f"'{masks / f'{files[0].stem}.png'}': no mask of the first frame")
    return Video(name, tuple(files), annotations, joined)


def _read(mask: Path) -> tuple[npt.NDArray[np.uint8], str]:
    with decoding(f"mask '{mask}'"), Image.open(mask) as opened:
        mode = opened.mode
    return read_labels(mask), mode
