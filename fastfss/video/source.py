"""Where frames come from: a video file, a folder of images, one image, a camera or stream."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastfss.data import ImageLike, read_image
from fastfss.data.pixels import decoding
from fastfss.errors import expected, expected_kind
from fastfss.video.limits import DEFAULT_LIMITS, Limits

IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"))


@runtime_checkable
class FrameSource(Protocol):
    """Frames by number.

    Attributes:
        name: of the video, for messages and file names.
        size: height and width of the frames.
        count: how many there are; None where they only come one after another.
        fps: frames a second; 0 where that means nothing.
    """

    name: str
    size: tuple[int, int]
    count: int | None
    fps: float

    def frame(self, number: int) -> Tensor:
        """A frame: uint8 (3, H, W), RGB.

        Raises:
            ValueError: it cannot be read, or is of another size than the first.
        """

    def frame_name(self, number: int) -> str:
        """What files of this frame are called, without suffix."""

    def close(self) -> None:
        """Give back what is held open."""


def open_source(source: object, limits: Limits = DEFAULT_LIMITS) -> FrameSource:
    """A source by what it is.

    Args:
        source: a video file, a folder of images, an image in any form `read_image` takes, or a
            sequence of images, or a source, which is returned as it is.
        limits: what is refused.

    Raises:
        FileNotFoundError: no such file or folder.
        TypeError, ValueError: something else, or more than the limits allow.
        MissingExtraError: a video file without PyAV.
    """
    if isinstance(source, FrameSource):
        return source
    if isinstance(source, str | Path):
        path = Path(source)
        if path.is_dir():
            return ImageFolder(path, limits)
        if not path.exists():
            raise FileNotFoundError(f"source '{path}': no such file or folder")
        if path.suffix.lower() in IMAGE_SUFFIXES:
            return ImageFiles([path], path.stem, limits)
        from fastfss.video.video_file import VideoFile

        return VideoFile(path, limits)
    if isinstance(source, Image.Image | np.ndarray | Tensor):
        return ImageFiles([source], "image", limits)
    if isinstance(source, Sequence) and source:
        return ImageFiles(list(source), "images", limits)
    wanted = "a video file, a folder of images, an image, or a sequence of images"
    raise expected_kind("source", wanted, type(source).__name__)


class ImageFiles:
    """Images one after another, each read when it is asked for."""

    fps = 0.0

    def __init__(
        self, images: Sequence[ImageLike], name: str, limits: Limits = DEFAULT_LIMITS
    ) -> None:
        limits.check_frames(len(images), f"source '{name}'")
        self.name = name
        self.count: int | None = len(images)
        self._images = images
        self._limits = limits
        first = self._read(0)
        self.size = (first.shape[1], first.shape[2])

    def frame(self, number: int) -> Tensor:
        """See FrameSource.frame."""
        found = self._read(number)
        size = (found.shape[1], found.shape[2])
        if size != self.size:
            wanted = f"{self.size[1]} x {self.size[0]} pixels as the first frame has"
            raise expected(f"frame {self.frame_name(number)}", wanted, f"{size[1]} x {size[0]}")
        return found

    def frame_name(self, number: int) -> str:
        """See FrameSource.frame_name: the image's own, or its number."""
        image = self._images[number]
        return Path(image).stem if isinstance(image, str | Path) else f"{number:05d}"

    def close(self) -> None:
        """Nothing is held open."""

    def _read(self, number: int) -> Tensor:
        image = self._images[number]
        argument = f"frame {number}"
        if isinstance(image, str | Path):
            # The header says the size before anything is unpacked.
            with decoding(f"{argument} '{image}'"), Image.open(image) as opened:
                width, height = opened.size
            self._limits.check_size((height, width), f"{argument} '{image}'")
        return read_image(image, argument=argument)


class ImageFolder(ImageFiles):
    """The images of a folder, in the order of their names, numbers by value: 2 before 10."""

    def __init__(self, folder: Path, limits: Limits = DEFAULT_LIMITS) -> None:
        files = [path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES]
        if not files:
            raise expected(f"source '{folder}'", "a folder with images", "none in it")
        files.sort(key=_natural)
        super().__init__(files, folder.resolve().name, limits)


@dataclass
class _Kept:
    frame: Tensor


class LiveSource:
    """Frames that are given one after another, as of a camera; the last ones can be looked at.

    Args:
        name: of the source.
        keep: so many of the last frames.
        limits: what is refused.
    """

    count: int | None = None
    fps = 0.0

    def __init__(self, name: str = "live", *, keep: int = 8, limits: Limits = DEFAULT_LIMITS):
        if keep < 1:
            raise expected("keep", "at least 1 frame", str(keep))
        self.name = name
        self.size = (0, 0)
        self.next = 0
        self._keep = keep
        self._held: set[int] = set()
        self._frames: OrderedDict[int, _Kept] = OrderedDict()
        self._limits = limits

    def push(self, image: ImageLike) -> int:
        """Take the next frame; its number.

        Raises:
            ValueError: it is of another size than those before.
        """
        found = read_image(image, argument="image")
        size = (found.shape[1], found.shape[2])
        self._limits.check_size(size, "image")
        if self.next and size != self.size:
            wanted = f"{self.size[1]} x {self.size[0]} pixels as the frames before"
            raise expected("image", wanted, f"{size[1]} x {size[0]}")
        self.size = size
        number, self.next = self.next, self.next + 1
        self._frames[number] = _Kept(found)
        for old in [n for n in self._frames if n not in self._held][: -self._keep]:
            del self._frames[old]
        return number

    def hold(self, numbers: set[int]) -> None:
        """Keep these frames however many come."""
        self._held = set(numbers)

    def frame(self, number: int) -> Tensor:
        """See FrameSource.frame; only of the last frames and those that are held."""
        if number not in self._frames:
            have = ", ".join(map(str, self._frames)) or "none"
            raise expected("frame", f"one of those that are kept ({have})", str(number))
        return self._frames[number].frame

    def frame_name(self, number: int) -> str:
        """See FrameSource.frame_name."""
        return f"{number:05d}"

    def close(self) -> None:
        """Nothing is held open."""


def read_stream(address: str, format: str | None = None) -> Iterator[Tensor]:
    """The frames of a camera or network stream, for `VideoSession.step`, one after another.

    Args:
        address: of FFmpeg: "rtsp://...", "/dev/video0", "video=Name of a camera".
        format: of a camera: "v4l2" on Linux, "avfoundation" on macOS, "dshow" on Windows.

    Yields:
        uint8 (3, H, W), RGB.

    Raises:
        ValueError: it cannot be opened or breaks off; it is named.
        MissingExtraError: without PyAV.
    """
    from fastfss.video.video_file import opened_video, rgb

    container, stream = opened_video(address, format)
    with container:
        for frame in container.decode(stream):
            yield rgb(frame)


def frame_of(source: FrameSource, number: object, argument: str = "frame") -> int:
    """A frame's number, checked.

    Raises:
        TypeError: no integer.
        ValueError: no such frame.
    """
    if isinstance(number, bool) or not isinstance(number, int | np.integer):
        raise expected_kind(argument, "the number of a frame", repr(number))
    count = source.next if isinstance(source, LiveSource) else source.count
    assert count is not None
    if not 0 <= number < count:
        wanted = f"0 to {count - 1}, a frame of '{source.name}'" if count else "a frame that came"
        raise expected(argument, wanted, str(number))
    return int(number)


def _natural(path: Path) -> tuple[list[tuple[int, int, str]], str]:
    parts = re.findall(r"\d+|\D+", path.stem.lower())
    return [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in parts], path.name


def to_tensor(pixels: np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]) -> Tensor:
    """(H, W, 3) -> (3, H, W), in memory of its own."""
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
