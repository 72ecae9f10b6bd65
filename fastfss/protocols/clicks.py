"""NoC: how many clicks a mask takes, by the simulated annotator."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from fastfss.data.masks import IGNORED
from fastfss.data.sets import MaskSet
from fastfss.errors import expected
from fastfss.interactive import InteractiveSession, next_click
from fastfss.interactive.refinement import RefinementName
from fastfss.methods import FewShotSegmenter

Mask = npt.NDArray[np.bool_]

MOST_CLICKS = 20
THRESHOLDS = (0.80, 0.85, 0.90)


class Clickable(Protocol):
    """One image to be segmented by clicks."""

    def click(self, x: int, y: int, positive: bool) -> Mask:
        """Add a click; the mask (H, W) with all clicks so far."""


# image uint8 (3, H, W) -> what takes the clicks
Start = Callable[[Tensor], Clickable]


@dataclass(frozen=True)
class ClickReport:
    """What came out.

    Attributes:
        noc: threshold in percent -> mean number of clicks until the IoU reaches it, 20 where it
            never does.
        failures: threshold in percent -> objects that do not reach it in 20 clicks.
        curve: mean IoU in percent after each click.
        seconds_per_click: mean, without the first's encoding.
        seconds_to_start: mean, of the encoding.
        objects: how many were segmented.
    """

    noc: dict[int, float]
    failures: dict[int, int]
    curve: tuple[float, ...]
    seconds_per_click: float
    seconds_to_start: float
    objects: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def evaluate_clicks(
    start: Start,
    images: MaskSet,
    objects: Sequence[tuple[int, int]],
    *,
    clicks: int = MOST_CLICKS,
    progress: Callable[[], None] | None = None,
) -> ClickReport:
    """Click on objects as the simulated annotator does, and count.

    NoC@t is the mean over objects of the first click with which the IoU is at least t (Sofiiuk et
    al., ICIP 2022, and before). An object stops at the highest threshold; its IoU then counts for
    the later places of the curve.

    Args:
        start: begins an image.
        images: the set.
        objects: (item, class) of each object.
        clicks: at most so many.
        progress: called after each object.

    Raises:
        ValueError: no object, or one that its mask does not show.
    """
    if not objects:
        raise expected("objects", "at least one", "none")
    needed: dict[float, list[int]] = {t: [] for t in THRESHOLDS}
    failed = dict.fromkeys(THRESHOLDS, 0)
    curves, clicking, starting, made = [], 0.0, 0.0, 0
    for item, cls in objects:
        mask = images.mask(item, cls).numpy()
        truth, ignored = mask == 1, mask == IGNORED
        if not truth.any():
            raise expected("objects", "objects that the masks show", images.items[item].name)
        since = time.perf_counter()
        session = start(images.image(item))
        starting += time.perf_counter() - since
        found = np.zeros_like(truth)
        curve: list[float] = []
        while len(curve) < clicks:
            where = next_click(found, truth, ignored)
            if where is None:
                break
            since = time.perf_counter()
            found = session.click(*where)
            clicking += time.perf_counter() - since
            made += 1
            counted = found & ~ignored
            curve.append(float((counted & truth).sum() / max(1, (counted | truth).sum())))
            if curve[-1] >= THRESHOLDS[-1]:
                break
        for threshold in THRESHOLDS:
            reached = [place for place, iou in enumerate(curve, start=1) if iou >= threshold]
            needed[threshold].append(reached[0] if reached else clicks)
            failed[threshold] += not reached
        curves.append(curve + curve[-1:] * (clicks - len(curve)))
        if progress is not None:
            progress()
    return ClickReport(
        noc={round(100 * t): float(np.mean(needed[t])) for t in THRESHOLDS},
        failures={round(100 * t): failed[t] for t in THRESHOLDS},
        curve=tuple((100 * np.mean(curves, axis=0)).round(3).tolist()),
        seconds_per_click=clicking / made,
        seconds_to_start=starting / len(objects),
        objects=len(objects),
    )


class _Session:
    def __init__(self, session: InteractiveSession) -> None:
        self.session = session

    def click(self, x: int, y: int, positive: bool) -> Mask:
        return self.session.click(x, y, positive=positive).mask()


def by_session(model: FewShotSegmenter, refinement: RefinementName, **options: Any) -> Start:
    """A method in an InteractiveSession, as evaluate_clicks begins it."""
    return lambda image: _Session(
        InteractiveSession(model, image, refinement=refinement, **options)
    )


def objects_of(
    images: MaskSet, *, count: int | None = None, seed: int = 0
) -> list[tuple[int, int]]:
    """The objects of a set: each class of each image; of many, `count` drawn by `seed`."""
    found = [(n, c) for c, members in images.index().items() for n in members]
    found.sort()
    if count is not None and count < len(found):
        chosen = np.random.RandomState(seed).choice(len(found), count, replace=False)
        found = [found[place] for place in sorted(chosen.tolist())]
    return found
