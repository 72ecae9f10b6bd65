"""Clips of moving squares on a still background, with exact masks; a model that sees colours."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn

import fastfss.video
from fastfss import create_model
from fastfss.encoders import Encoder, FeatureInfo, Normalization
from fastfss.methods import FewShotSegmenter
from fastfss.video import VideoSession

HEIGHT, WIDTH = 60, 90
Frames = list[npt.NDArray[np.uint8]]
Masks = list[npt.NDArray[np.uint8]]


class Colours(Encoder):
    """The mean colour of each 4 x 4 pixels: enough to tell the squares apart, in no time."""

    def __init__(self) -> None:
        half = (0.5, 0.5, 0.5)
        super().__init__("colours", (FeatureInfo("layer1", 3, 4),), Normalization(half, half))
        self.gain = nn.Parameter(torch.ones(()))

    def _compute(self, images: torch.Tensor, names: frozenset[str]) -> dict[str, torch.Tensor]:
        return {"layer1": F.avg_pool2d(images, 4, ceil_mode=True, count_include_pad=False)}


@cache
def model(method: str = "propagation") -> FewShotSegmenter:
    """A method on colours."""
    size = {} if method == "propagation" else {"size": 97}
    return create_model(method, encoder=Colours(), layers=("layer1",), **size)


def clip(
    count: int = 6, objects: int = 1, height: int = HEIGHT, width: int = WIDTH, seed: int = 0
) -> tuple[Frames, Masks]:
    """Frames (H, W, 3), and their label maps (H, W)."""
    generator = np.random.default_rng(seed)
    background = generator.integers(0, 60, (height, width, 3), dtype=np.uint8)
    colours = np.array([(220, 60, 40), (40, 200, 80), (60, 80, 230)])
    frames, masks = [], []
    for t in range(count):
        frame, mask = background.copy(), np.zeros((height, width), np.uint8)
        for n in range(objects):
            top, left = height // 6 + (height // 4) * n, 8 + 3 * t + 22 * n
            inside = np.s_[top : top + height // 3, left : left + height // 3]
            frame[inside] = colours[n] + generator.integers(-15, 16, frame[inside].shape)
            mask[inside] = n + 1
        frames.append(frame)
        masks.append(mask)
    return frames, masks


def session(count: int = 6, objects: int = 1, **options: object) -> VideoSession:
    """A session of `clip`, nothing said yet."""
    chosen = options.pop("model", None) or model()
    frames = clip(count, objects)[0]
    return fastfss.video.open(frames, chosen, **{"size": 120, **options})  # type: ignore[arg-type]


def iou(found: npt.NDArray[np.generic], truth: npt.NDArray[np.generic]) -> float:
    """Of two masks."""
    found, truth = found != 0, truth != 0
    return float((found & truth).sum() / max(1, (found | truth).sum()))
