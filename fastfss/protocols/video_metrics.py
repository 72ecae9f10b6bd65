"""How well masks follow an object through a video: regions J, contours F, and their decay.

Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation",
CVPR 2016; several objects as in Pont-Tuset et al., arXiv 1704.00675.

    J = |M & G| / |M | G|        F = 2 P R / (P + R)        J&F = (J + F) / 2

P is the share of the mask's contour that lies within a disk of a pixel of the truth's contour, R
the other way round. Where mask and truth are both empty, J and F are 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastfss.errors import expected

Mask = npt.NDArray[np.bool_]

TOLERANCE = 0.008  # of the image's diagonal, the radius within which contours match
QUARTERS = 4  # of a sequence; decay is the first one's mean minus the last one's


def region_similarity(mask: Mask, truth: Mask) -> float:
    """J of one object in one frame; masks (H, W).

    Raises:
        ValueError: masks of different sizes.
    """
    _same_size(mask, truth)
    union = int(np.count_nonzero(mask | truth))
    return 1.0 if union == 0 else int(np.count_nonzero(mask & truth)) / union


def contour_accuracy(mask: Mask, truth: Mask, tolerance: float = TOLERANCE) -> float:
    """F of one object in one frame.

    Args:
        mask, truth: (H, W).
        tolerance: of the diagonal; the radius is rounded up.

    Raises:
        ValueError: masks of different sizes.
    """
    _same_size(mask, truth)
    found, true = contour(mask), contour(truth)
    counts = int(np.count_nonzero(found)), int(np.count_nonzero(true))
    if 0 in counts:
        return 1.0 if counts == (0, 0) else 0.0
    radius = math.ceil(tolerance * math.hypot(*mask.shape))
    precision = np.count_nonzero(found & dilated(true, radius)) / counts[0]
    recall = np.count_nonzero(true & dilated(found, radius)) / counts[1]
    if precision + recall == 0:
        return 0.0
    return float(2 * precision * recall / (precision + recall))


def contour(mask: Mask) -> Mask:
    """The contour, one pixel wide: pixels unlike the one on the right, below, or right below."""
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    here, right = padded[:-1, :-1], padded[:-1, 1:]
    below, corner = padded[1:, :-1], padded[1:, 1:]
    found: Mask = (here != right) | (here != below) | (here != corner)
    return found


def dilated(points: Mask, radius: int) -> Mask:
    """All pixels within `radius` of one of the points.

    Row by row of the disk, each by running sums, so that the cost grows with the radius alone.
    """
    height, width = points.shape
    sums = np.zeros((height, width + 2 * radius + 1), dtype=np.int32)
    sums[:, radius + 1 : radius + 1 + width] = points.cumsum(axis=1)
    sums[:, radius + 1 + width :] = sums[:, radius + width, None]
    reached = np.zeros_like(points)
    for shift in range(-min(radius, height - 1), min(radius, height - 1) + 1):
        half = math.isqrt(radius**2 - shift**2)
        high = sums[:, radius + half + 1 : radius + half + 1 + width]
        near = high > sums[:, radius - half : radius - half + width]
        first, last = max(0, shift), height + min(0, shift)
        reached[first:last] |= near[first - shift : last - shift]
    return reached


@dataclass(frozen=True)
class ObjectScore:
    """The figures of one object of a sequence.

    Attributes:
        sequence: its name.
        object: the object's number.
        regions, contours: J and F of the frames that count, in order.
    """

    sequence: str
    object: int
    regions: tuple[float, ...]
    contours: tuple[float, ...]

    @property
    def region(self) -> float:
        """Mean J."""
        return _mean(self.regions)

    @property
    def contour(self) -> float:
        """Mean F."""
        return _mean(self.contours)

    @property
    def both(self) -> float:
        """J&F."""
        return (self.region + self.contour) / 2

    @property
    def decay(self) -> float:
        """How much of J is lost from the first quarter of the frames to the last."""
        return decay(self.regions)

    @property
    def contour_decay(self) -> float:
        """The same of F."""
        return decay(self.contours)


def decay(values: Sequence[float]) -> float:
    """The mean of the first quarter minus that of the last; 0 for fewer than four values."""
    if len(values) < QUARTERS:
        return 0.0
    first, *_, last = np.array_split(np.asarray(values), QUARTERS)
    return float(first.mean() - last.mean())


def score_frame(
    labels: npt.NDArray[np.integer], truth: npt.NDArray[np.integer], objects: Sequence[int]
) -> dict[int, tuple[float, float]]:
    """J and F of each object in a frame.

    Args:
        labels: (H, W), what was found: 0 background, n the n-th object.
        truth: (H, W); pixels of 255 count for nothing where 255 is no object.
        objects: the numbers.

    Raises:
        ValueError: label maps of different sizes.
    """
    if labels.shape != truth.shape:
        raise expected("labels", f"the truth's size {truth.shape}", str(labels.shape))
    counted = np.ones(truth.shape, dtype=np.bool_) if 255 in objects else truth != 255
    found = {}
    for number in objects:
        mask, true = (labels == number) & counted, truth == number
        found[number] = (region_similarity(mask, true), contour_accuracy(mask, true))
    return found


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def _same_size(mask: Mask, truth: Mask) -> None:
    if mask.shape != truth.shape or mask.ndim != 2:
        raise expected("mask", f"the truth's size {truth.shape}", str(mask.shape))
