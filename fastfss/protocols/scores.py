"""Figures from the counts of single episodes, and their intervals.

The meters (fastfss.protocols.metrics) add up as they go; here every episode's counts are kept, so
that processes can share the work, the worst episodes be found and episodes be drawn again. Both
give the same figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastfss.protocols.protocol import Figure

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

REPEATS = 1000
LEVEL = 0.95
# What a class without episodes does to the mean over classes; under "panet" it makes it NaN.
_UNSEEN_IS_ZERO = ("fold", "pfenet")
_UNSEEN_IS_LEFT_OUT = ("seen", "confusion", "denet")


@dataclass(frozen=True, eq=False)
class EpisodeCounts:
    """What was counted in each of E episodes of W ways.

    Attributes:
        pairs: (E, W + 1, W + 1) pixels by truth and prediction; 255 in neither.
        classes: (E, W) class ids.
        runs: (E,) the run of each.
    """

    pairs: Ints
    classes: Ints
    runs: Ints

    @property
    def iou(self) -> Floats:
        """(E,) mean IoU of each episode's ways; 1 where there is nothing and nothing was found."""
        own = np.diagonal(self.pairs, axis1=1, axis2=2)[:, 1:]
        union = (self.pairs.sum(1) + self.pairs.sum(2))[:, 1:] - own
        iou: Floats = np.where(union > 0, own / np.maximum(union, 1), 1.0).mean(axis=1)
        return iou

    def unseen(self, classes: Sequence[int]) -> list[int]:
        """Those of the classes that no episode is of."""
        return sorted(set(classes) - set(self.classes.flatten().tolist()))


def fate_of_unseen(figure: Figure) -> str:
    """What becomes of classes without episodes, as the end of a sentence about them."""
    if figure in _UNSEEN_IS_ZERO:
        return "count as 0"
    return "are left out" if figure in _UNSEEN_IS_LEFT_OUT else "leave mIoU undefined"


@dataclass(frozen=True)
class Figures:
    """The figures of a fold, in percent.

    Attributes:
        miou: the protocol's.
        fb_iou: mean of foreground and background; None where the protocol has none.
        class_iou: of each class; NaN where it never occurred and is left out.
        interval: of mIoU, 95 %: see `bootstrap`.
        run_mious: of each run.
    """

    miou: float
    fb_iou: float | None
    class_iou: dict[int, float]
    interval: tuple[float, float]
    run_mious: tuple[float, ...]


def figures_of(
    counts: EpisodeCounts,
    classes: Sequence[int],
    figure: Figure,
    *,
    repeats: int = REPEATS,
    seed: int = 0,
) -> Figures:
    """The figures of a fold.

    The interval is of the percentile bootstrap: `repeats` times as many episodes as there are, of
    each run, are drawn with replacement and the figure is computed of them; the 2.5 and the 97.5
    percentile. A class that has episodes, but none in a draw, is left out of that draw's mean: as
    0, where the protocol has it so, it would stretch the interval of few episodes. The interval
    says how far another draw of episodes of these classes would lie, not how far other classes.

    Args:
        counts: of all episodes.
        classes: the fold's.
        figure: the protocol's rule.
        repeats: of the bootstrap.
        seed: likewise.
    """
    parts = _Parts(counts, classes, figure)
    ones = np.ones((1, len(counts.runs)))
    class_iou = parts.class_iou(ones)[0]
    runs = parts.run_mious(ones)[0]
    fb = None if figure == "confusion" else float(parts.fb_iou(ones)[0])
    generator = np.random.RandomState(seed)
    weights = np.zeros((repeats, len(counts.runs)))
    for run in np.unique(counts.runs):
        members = np.flatnonzero(counts.runs == run)
        drawn = generator.multinomial(len(members), [1 / len(members)] * len(members), repeats)
        weights[:, members] = drawn
    means = _mean(parts.run_mious(weights))
    edges = np.percentile(means, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return Figures(
        miou=float(_mean(runs[None])[0]),
        fb_iou=fb,
        class_iou=dict(zip(classes, class_iou.tolist(), strict=True)),
        interval=(float(edges[0]), float(edges[1])),
        run_mious=tuple(runs.tolist()),
    )


class _Parts:
    """Intersections and unions of every episode, ready to be added up with weights."""

    def __init__(self, counts: EpisodeCounts, classes: Sequence[int], figure: Figure) -> None:
        self.figure, self.runs = figure, counts.runs
        pairs = counts.pairs.astype(np.float64)
        own = np.diagonal(pairs, axis1=1, axis2=2)
        union = pairs.sum(1) + pairs.sum(2) - own
        if figure in ("panet", "denet"):
            # A label that the truth lacks adds nothing, not even its false positives.
            present = pairs.sum(2) > 0
            own, union = own * present, union * present
        place = {number: i for i, number in enumerate(classes)}
        episodes, ways = counts.classes.shape
        self.own = np.zeros((episodes, len(classes)))
        self.union = np.zeros((episodes, len(classes)))
        for way in range(ways):
            columns = [place[number] for number in counts.classes[:, way].tolist()]
            self.own[np.arange(episodes), columns] += own[:, way + 1]
            self.union[np.arange(episodes), columns] += union[:, way + 1]
        self.side_own = np.stack([own[:, 0], own[:, 1:].sum(1)], axis=1)
        self.side_union = np.stack([union[:, 0], union[:, 1:].sum(1)], axis=1)

    def class_iou(self, weights: Floats) -> Floats:
        """(R, C): over all runs; of several the mean."""
        return _nanmean(np.stack([self._class_iou(weights, mask) for mask in self._masks()]))

    def run_mious(self, weights: Floats) -> Floats:
        """(R, runs)."""
        mious = []
        for mask in self._masks():
            miou = _nanmean(self._class_iou(weights, mask).T)
            if self.figure == "panet" and self._unseen(mask).any():
                miou[:] = np.nan
            mious.append(miou)
        return np.stack(mious, axis=1)

    def fb_iou(self, weights: Floats) -> Floats:
        """(R,); DENet's is the foreground's alone."""
        found = []
        for mask in self._masks():
            own = (weights * mask) @ self.side_own
            iou = 100 * own / np.maximum((weights * mask) @ self.side_union, 1)
            found.append(iou[:, 1] if self.figure == "denet" else iou.mean(axis=1))
        sides: Floats = np.stack(found).mean(axis=0)
        return sides

    def _class_iou(self, weights: Floats, run: Floats) -> Floats:
        """(R, C) of a run; NaN where a class is left out."""
        union: Floats = (weights * run) @ self.union
        iou: Floats = 100 * ((weights * run) @ self.own) / np.maximum(union, 1)
        iou[union == 0] = np.nan
        if self.figure in _UNSEEN_IS_ZERO:
            iou[:, self._unseen(run)] = 0.0
        return iou

    def _unseen(self, run: Floats) -> npt.NDArray[np.bool_]:
        """(C,) whether a class never occurs in a run."""
        unseen: npt.NDArray[np.bool_] = (run @ self.union)[0] == 0
        return unseen

    def _masks(self) -> list[Floats]:
        return [(self.runs == run).astype(np.float64)[None] for run in np.unique(self.runs)]


def _nanmean(values: Floats) -> Floats:
    """Over the first axis; NaN where there is nothing."""
    known = ~np.isnan(values)
    count = known.sum(axis=0)
    total = np.where(known, values, 0.0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _mean(runs: Floats) -> Floats:
    return np.asarray(runs.mean(axis=1))
