"""Video files, by PyAV: any frame by its number, exactly."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fastfss.errors import expected, import_extra
from fastfss.video.limits import DEFAULT_LIMITS, Limits
from fastfss.video.source import to_tensor

# Decoded frames that are kept: going backward needs all of a group of pictures for each of it.
_KEPT_BYTES = 192 << 20
# A frame that is not farther ahead is reached by decoding on, which is cheaper than to seek.
_STRIDE = 24


class VideoFile:
    """The frames of a video file; see FrameSource.

    On opening, the packets are read once, without decoding, for the number of frames and the time
    stamp of each.
    """

    def __init__(self, path: Path, limits: Limits = DEFAULT_LIMITS) -> None:
        self.path = path
        self.name = path.stem
        self._container, self._stream = opened_video(str(path))
        try:
            limits.check_size((self._stream.height, self._stream.width), f"source '{path}'")
            self._times = self._time_stamps(limits)
            self.count: int | None = len(self._times)
            limits.check_frames(self.count, f"source '{path}'")
            self._number = {time: number for number, time in enumerate(self._times)}
            self.fps = float(self._stream.average_rate or 0)
            self._kept: OrderedDict[int, Tensor] = OrderedDict()
            self._decoder: Iterator[Any] | None = None
            self._at = -1  # the frame that the decoder gave last
            first = self.frame(0)
        except BaseException:
            self._container.close()
            raise
        self.size = (first.shape[1], first.shape[2])

    def frame(self, number: int) -> Tensor:
        """See FrameSource.frame."""
        kept = self._kept.get(number)
        if kept is not None:
            self._kept.move_to_end(number)
            return kept
        try:
            found = self._decoded(number)
        except self._errors() as error:
            raise ValueError(f"frame {number} of '{self.path}' is broken: {error}") from None
        if found is None:
            raise ValueError(f"frame {number} of '{self.path}' is broken: no picture in it")
        return found

    def frame_name(self, number: int) -> str:
        """See FrameSource.frame_name."""
        return f"{number:05d}"

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def _decoded(self, number: int) -> Tensor | None:
        if self._decoder is None or not self._at < number <= self._at + _STRIDE:
            # To the last key frame that is not after it.
            self._container.seek(self._times[number], stream=self._stream, backward=True)
            self._decoder, self._at = self._container.decode(self._stream), -1
        for picture in self._decoder:
            here = self._number.get(picture.pts, self._at + 1)
            self._at = here
            self._keep(here, rgb(picture))
            if here >= number:
                break
        else:
            self._decoder = None
        return self._kept.get(number)

    def _keep(self, number: int, frame: Tensor) -> None:
        self._kept[number] = frame
        self._kept.move_to_end(number)
        while len(self._kept) > max(2, _KEPT_BYTES // frame.numel()):
            self._kept.popitem(last=False)

    def _time_stamps(self, limits: Limits) -> list[int]:
        times: list[int] = []
        for packet in self._container.demux(self._stream):
            if packet.pts is not None and not packet.is_discard and not packet.is_corrupt:
                times.append(packet.pts)
                if len(times) > limits.frames:
                    break
        return sorted(set(times))

    @staticmethod
    def _errors() -> tuple[type[Exception], ...]:
        av: Any = import_extra("av", extra="video", purpose="reading videos")
        return (av.error.FFmpegError, ValueError)


def opened_video(address: str, format: str | None = None) -> tuple[Any, Any]:
    """The container and its first video stream.

    Raises:
        ValueError: no video; it is named.
        MissingExtraError: without PyAV.
    """
    av: Any = import_extra("av", extra="video", purpose="reading videos")
    try:
        container = av.open(address, format=format)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        came = getattr(error, "strerror", None) or str(error)
        raise expected(f"source '{address}'", "a video that FFmpeg reads", came) from None
    if not container.streams.video:
        container.close()
        raise expected(f"source '{address}'", "a video", "a file without pictures")
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    return container, stream


def rgb(picture: Any) -> Tensor:
    """uint8 (3, H, W) of PyAV's frame, upright where a phone noted how it was held."""
    pixels = picture.to_ndarray(format="rgb24")
    turns = round(getattr(picture, "rotation", 0) / 90) % 4
    return to_tensor(np.rot90(pixels, turns) if turns else pixels)
