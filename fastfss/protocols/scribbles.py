"""Scribbles: DAVIS's files, and the simulated annotator that draws on what is wrong.

Caelles et al., "The 2018 DAVIS Challenge on Video Object Segmentation", arXiv 1803.00557.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastfss.errors import expected, import_extra
from fastfss.reading import read_json

Mask = npt.NDArray[np.bool_]
Labels = npt.NDArray[np.integer[Any]]

_OPENING_SHARE, _LARGEST_OPENING = 0.15, 16  # of a region's side; pixels
_FEWEST_NODES = 4
_CURVE_POINTS = 1000


@dataclass(frozen=True)
class Scribble:
    """A line that somebody drew.

    Attributes:
        frame: where.
        object: whose it is; 0 for the background.
        path: (N, 2) of x and y, as shares of the width and the height.
    """

    frame: int
    object: int
    path: npt.NDArray[np.float64]

    def pixels(self, size: tuple[int, int]) -> list[tuple[float, float]]:
        """(x, y) in a frame of a height and width; each pixel once, in order."""
        scaled = np.floor(self.path * (size[1], size[0]))
        inside = np.clip(scaled, 0, (size[1] - 1, size[0] - 1))
        moved = np.ones(len(inside), dtype=np.bool_)
        moved[1:] = (inside[1:] != inside[:-1]).any(axis=1)
        return [(float(x), float(y)) for x, y in inside[moved]]


def read_scribbles(path: str | Path) -> list[Scribble]:
    """The scribbles of a file of DAVIS.

    Raises:
        OSError: it cannot be read.
        ValueError: something else; the file is named.
    """
    path = Path(path)
    try:
        plain = read_json(path, "its text")
        found = [
            Scribble(frame, int(one["object_id"]), np.array(one["path"], dtype=np.float64))
            for frame, drawn in enumerate(plain["scribbles"])
            for one in drawn
        ]
        for one in found:
            if one.path.ndim != 2 or one.path.shape[1] != 2 or not np.isfinite(one.path).all():
                raise expected("path", "pairs of finite numbers", str(one.path.shape))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise expected(f"'{path}'", "scribbles as DAVIS has them", str(error)) from None
    return found


def correcting_scribbles(
    labels: Labels, truth: Labels, objects: Sequence[int], frame: int
) -> list[Scribble]:
    """What the simulated annotator draws on the errors of a frame.

    For the background and each object: the pixels that are its own and were given to another,
    opened by a disk; their skeleton; of each of its parts the longest path, smoothed to a Bezier
    curve.

    Args:
        labels: (H, W), what was found.
        truth: (H, W); 255 counts for nothing where it is no object.
        objects: the numbers.
        frame: the frame's number.

    Raises:
        MissingExtraError: without scikit-image or SciPy.
    """
    morphology: Any = import_extra("skimage.morphology", extra="demo", purpose="scribbles")
    ndimage: Any = import_extra("scipy.ndimage", extra="interactive", purpose="scribbles")
    height, width = truth.shape
    drawn = []
    for number in (0, *objects):
        wrong = (truth == number) & (labels != number)
        side = math.sqrt(int(wrong.sum()))
        radius = min(_LARGEST_OPENING, _OPENING_SHARE * side / 2)
        if radius >= 1:
            span = np.arange(-int(radius), int(radius) + 1)
            disk = span[:, None] ** 2 + span[None] ** 2 <= radius**2
            wrong = ndimage.binary_opening(wrong, disk)
        skeleton = morphology.skeletonize(wrong)
        parts, count = ndimage.label(skeleton, structure=np.ones((3, 3)))
        for part in range(1, count + 1):
            path = longest_path(parts == part)
            if len(path) >= _FEWEST_NODES:
                curve = bezier(path[:, ::-1].astype(np.float64) + 0.5, _CURVE_POINTS)
                drawn.append(Scribble(frame, number, curve / (width, height)))
    return drawn


def stroke_inside(region: Mask, object: int, frame: int) -> Scribble:
    """A short level line through the deepest point of a region that has no skeleton to draw."""
    ndimage: Any = import_extra("scipy.ndimage", extra="interactive", purpose="scribbles")
    depth = ndimage.distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1]
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    half = float(depth.max()) / 2
    ends = np.array([[x + 0.5 - half, y + 0.5], [x + 0.5 + half, y + 0.5]])
    height, width = region.shape
    return Scribble(frame, object, bezier(ends, _CURVE_POINTS) / (width, height))


def longest_path(pixels: Mask) -> npt.NDArray[np.int64]:  # (N, 2) of row and column
    """The longest of the shortest paths in a connected set of pixels, all eight ways."""
    nodes = {(int(y), int(x)) for y, x in np.argwhere(pixels)}
    if not nodes:
        return np.zeros((0, 2), np.int64)
    order, _ = _searched(min(nodes), nodes)
    order, before = _searched(order[-1], nodes)
    path = [order[-1]]
    while (node := before[path[-1]]) is not None:
        path.append(node)
    return np.array(path, dtype=np.int64)


Node = tuple[int, int]


def _searched(start: Node, nodes: set[Node]) -> tuple[list[Node], dict[Node, Node | None]]:
    """Breadth first: the nodes in order of their distance, and each one's last but one."""
    before: dict[Node, Node | None] = {start: None}
    order, waiting = [], deque([start])
    while waiting:
        node = waiting.popleft()
        order.append(node)
        y, x = node
        for v in (y - 1, y, y + 1):
            for u in (x - 1, x, x + 1):
                if (v, u) in nodes and (v, u) not in before:
                    before[v, u] = node
                    waiting.append((v, u))
    return order, before


def bezier(
    points: npt.NDArray[np.float64],  # (N, 2)
    count: int,
) -> npt.NDArray[np.float64]:  # (count, 2)
    """The Bezier curve of control points: sum_k C(n, k) t^k (1 - t)^(n - k) p_k, t from 0 to 1.

    The weights by their logarithms, so that long paths neither over- nor underflow.
    """
    degree = len(points) - 1
    k = np.arange(degree + 1)
    factorials = np.array([math.lgamma(i + 1) for i in range(degree + 1)])
    binomials = factorials[-1] - factorials - factorials[::-1]
    t = np.linspace(0, 1, count)[1:-1, None]
    weights = np.exp(binomials + k * np.log(t) + (degree - k) * np.log1p(-t))
    return np.concatenate([points[:1], weights @ points, points[-1:]])
