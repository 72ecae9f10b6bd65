"""What a newcomer can click on at once: a photograph, and a clip that is drawn when it is shown."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastfss.errors import expected, import_extra
from fastfss.video.source import FrameSource, ImageFiles, to_tensor

Pixels = npt.NDArray[np.uint8]

# Samples by name, and what the page calls them.
SAMPLES = {"photo": "Sample photograph: an astronaut", "clip": "Sample clip: two balls on grass"}


def open_sample(name: str) -> FrameSource:
    """The frames of a sample.

    Raises:
        ValueError: no such sample.
        MissingExtraError: without scikit-image, which carries the photographs.
    """
    if name not in SAMPLES:
        raise expected("sample", f"one of {', '.join(SAMPLES)}", repr(name))
    data: Any = import_extra("skimage.data", extra="app", purpose="a sample")
    if name == "photo":
        return ImageFiles([data.astronaut()], "astronaut")
    return BallClip(data.grass()[:320, :480])


@dataclass(frozen=True)
class Ball:
    """A striped ball that bounces.

    Attributes:
        radius: in pixels.
        colours: of the ball and of its stripe.
        start, speed: x and y, in pixels and pixels a frame.
        spin: radians a frame.
    """

    radius: float
    colours: tuple[tuple[int, int, int], tuple[int, int, int]]
    start: tuple[float, float]
    speed: tuple[float, float]
    spin: float

    def centre(self, t: int, size: tuple[int, int]) -> tuple[float, float]:
        """x and y of its centre in a frame (height, width)."""
        places = []
        for start, speed, side in zip(self.start, self.speed, size[::-1], strict=True):
            span = side - 2 * self.radius
            way = (start - self.radius + speed * t) % (2 * span)
            places.append(self.radius + (way if way < span else 2 * span - way))
        return places[0], places[1]


_BALLS = (
    Ball(46, ((226, 92, 40), (250, 226, 190)), (90.0, 110.0), (5.0, 1.7), 0.11),
    Ball(34, ((52, 92, 205), (220, 230, 250)), (360.0, 230.0), (-3.1, 2.6), -0.15),
)


class BallClip:
    """Two balls on grass; see FrameSource. Where they meet, the first is in front.

    Args:
        texture: grey, (H, W), the background.
        count: the number of frames.
    """

    name = "balls"
    fps = 24.0

    def __init__(self, texture: Pixels, count: int = 72) -> None:
        self.size = (texture.shape[0], texture.shape[1])
        self.count: int | None = count
        tint = np.array([0.62, 0.95, 0.45])
        self._background = (texture[..., None] * tint).astype(np.uint8)
        self._y, self._x = np.mgrid[: self.size[0], : self.size[1]] + 0.5

    def frame(self, number: int) -> Tensor:
        """See FrameSource.frame."""
        assert self.count is not None
        if not 0 <= number < self.count:
            raise expected("frame", f"0 to {self.count - 1}", str(number))
        pixels = self._background.copy()
        for ball in reversed(_BALLS):
            self._draw(pixels, ball, number)
        return to_tensor(pixels)

    def labels(self, number: int) -> Tensor:
        """uint8 (H, W): where the balls are."""
        found = np.zeros(self.size, np.uint8)
        for label, ball in reversed(list(enumerate(_BALLS, start=1))):
            found[self._inside(ball, number)[2]] = label
        return torch.from_numpy(found)

    def frame_name(self, number: int) -> str:
        """See FrameSource.frame_name."""
        return f"{number:05d}"

    def close(self) -> None:
        """Nothing is held open."""

    def _inside(self, ball: Ball, t: int) -> tuple[Any, Any, Any]:
        x, y = ball.centre(t, self.size)
        u, v = (self._x - x) / ball.radius, (self._y - y) / ball.radius
        return u, v, u * u + v * v < 1

    def _draw(self, pixels: Pixels, ball: Ball, t: int) -> None:
        u, v, inside = self._inside(ball, t)
        across = u * math.sin(ball.spin * t) + v * math.cos(ball.spin * t)
        stripe = np.abs(across) < 0.22
        # Light from the upper left.
        height = np.sqrt(np.clip(1 - u * u - v * v, 0, 1))
        light = np.clip(0.45 + 0.6 * (height - 0.5 * u - 0.5 * v) / math.sqrt(1.5), 0.2, 1)
        colours = np.where(stripe[..., None], ball.colours[1], ball.colours[0])
        pixels[inside] = (colours * light[..., None])[inside].astype(np.uint8)
