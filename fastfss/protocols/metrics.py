"""The accumulators behind published figures; `update` per batch, `compute` at the end.

All count pixels in int64, so that batches, meters and processes add up to the same figures in any
order. (The published code of HSNet and PFENet adds in float32, which rounds beyond 2^24 pixels.)
The counts live where the predictions do: with `classes` on the CPU, `update` never waits for a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastfss.errors import expected
from fastfss.protocols._counting import (
    Meter,
    check_labels,
    checked_classes,
    checked_fold,
    checked_maps,
    count_pairs,
    intersection_of,
    mean_of,
    union_of,
)


class ConfusionMeter(Meter):
    """SSP's and MLC's own protocol: one confusion histogram over all labels and episodes.

    mIoU is the mean of TP / (truth + prediction - TP) over the classes 1.. that occurred.

    Args:
        labels: how many labels there are, background included (21 for PASCAL, 81 for COCO).
    """

    def __init__(self, labels: int) -> None:
        check_labels(labels)
        super().__init__(labels, labels)  # truth, prediction

    @property
    def histogram(self) -> Tensor:
        """Pixels by truth and prediction, (labels, labels)."""
        return self.counts

    def update(self, prediction: Tensor, truth: Tensor, classes: Tensor) -> None:
        """Add a batch.

        Args:
            prediction: (B, H, W) of {0, 1}.
            truth: (B, H, W) of {0, 1, 255}; 255 is skipped.
            classes: (B,) the label that 1 stands for in each episode.

        Raises:
            ValueError: for shapes that differ or labels out of range.
        """
        labels = self.counts.shape[0]
        prediction, truth = checked_maps(prediction, truth)
        label = checked_classes(classes, prediction, range(1, labels))
        self._move_to(prediction.device)
        pairs, strays = count_pairs(prediction, truth, labels=2)
        self._note_strays(strays, "values of 0 and 1, 255 in the truth alone")
        background = torch.zeros_like(label)
        cells = torch.stack([background, label, label * labels, label * (labels + 1)], 1)
        self.counts.view(-1).index_add_(0, cells.flatten(), pairs.flatten())

    def class_iou(self) -> dict[int, float]:
        """The IoU of the classes that occurred, in percent."""
        matrix = self._seen()
        iou = 100 * intersection_of(matrix) / union_of(matrix)
        return {c: float(iou[c]) for c in range(1, len(iou)) if not iou[c].isnan()}

    def compute(self) -> dict[str, float]:
        """ "miou" in percent over the classes that occurred; NaN before any did."""
        return {"miou": mean_of(self.class_iou())}


class FoldMeter(Meter):
    """HSNet's protocol: per class, intersection and union of background and foreground summed.

    A class that never occurred counts as 0; unions are at least 1 where divided by. FB-IoU is the
    mean of the two sides' IoU over all classes. DCAMA and IMR-HSNet use the same.

    Args:
        classes: the fold's class numbers.
    """

    def __init__(self, classes: Sequence[int]) -> None:
        self.classes = checked_fold(classes)
        super().__init__(max(self.classes) + 1, 2, 2)  # class, truth, prediction

    @property
    def intersection(self) -> Tensor:
        """Pixels where both are background, and foreground: (classes, 2)."""
        return intersection_of(self.counts)

    @property
    def union(self) -> Tensor:
        """Pixels where either is background, and foreground: (classes, 2)."""
        return union_of(self.counts)

    def update(self, prediction: Tensor, truth: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Add a batch; arguments as in ConfusionMeter.update, `classes` being class numbers.

        Returns:
            Intersection and union of this batch, (B, 2) each: background, foreground.
        """
        prediction, truth = checked_maps(prediction, truth)
        numbers = checked_classes(classes, prediction, self.classes)
        self._move_to(prediction.device)
        pairs, strays = count_pairs(prediction, truth, labels=2)
        self._note_strays(strays, "values of 0 and 1, 255 in the truth alone")
        self.counts.index_add_(0, numbers, pairs)
        return intersection_of(pairs), union_of(pairs)

    def class_iou(self) -> dict[int, float]:
        """The foreground IoU of the fold's classes, in percent."""
        counts = self._seen()[list(self.classes)]
        iou = 100 * self._ratio(intersection_of(counts)[:, 1], union_of(counts)[:, 1])
        return dict(zip(self.classes, iou.tolist(), strict=True))

    def compute(self) -> dict[str, float]:
        """ "miou" and "fb_iou" in percent."""
        counts = self._seen().sum(0)
        sides = self._ratio(intersection_of(counts), union_of(counts))
        return {"miou": mean_of(self.class_iou()), "fb_iou": 100 * float(sides.mean())}

    def _settings(self) -> tuple[object, ...]:
        return self.classes

    def _ratio(self, part: Tensor, whole: Tensor) -> Tensor:
        return part / whole.clamp_min(1)


class PFENetMeter(FoldMeter):
    """PFENet's protocol: FoldMeter's sums, divided by union + 1e-10, and two accuracies.

    The published code prints the classes' IoUs one place off: that of the fold's class number i
    (from 0) in line (i - 1) mod n. `class_iou` names each by its class; the means are the same.
    """

    def compute(self) -> dict[str, float]:
        """ "miou", "fb_iou", "mean_accuracy" of the two sides and "accuracy", in percent."""
        counts = self._seen().sum(0)
        correct, true = intersection_of(counts), counts.sum(-1)
        return {
            **super().compute(),
            "mean_accuracy": 100 * float(self._ratio(correct, true).mean()),
            "accuracy": 100 * float(self._ratio(correct.sum(), true.sum())),
        }

    def _ratio(self, part: Tensor, whole: Tensor) -> Tensor:
        return part / (whole + 1e-10)


class PANetMeter(Meter):
    """PANet's and PPNet's protocol: TP / (TP + FP + FN) per class and run, averaged over runs.

    A label that an episode's truth lacks adds nothing, not even its false positives. A class that
    never occurs in a run has IoU NaN there, and so has the mean. In episodes of several ways, a
    pixel of one way taken for another counts as an error of the foreground in FB-IoU too. Standard
    deviations are those of the population.

    Args:
        classes: the fold's class numbers, 1 or more; 0 is the background.
        runs: how many runs there are (published: 5, of 1000 episodes each).
    """

    def __init__(self, classes: Sequence[int], runs: int = 1) -> None:
        self.classes = checked_fold(classes, low=1)
        if runs < 1:
            raise expected("runs", "at least 1", str(runs))
        super().__init__(runs, max(self.classes) + 1, 3)  # run, class, TP / FP / FN

    def update(self, prediction: Tensor, truth: Tensor, classes: Tensor, run: int = 0) -> None:
        """Add a batch.

        Args:
            prediction: (B, H, W) of 0..W: the background and the episode's W ways.
            truth: (B, H, W) of 0..W and 255; 255 is skipped.
            classes: (B, W) the class of each way, or (B,) for one way.
            run: the run that the batch belongs to, from 0.

        Raises:
            ValueError: for shapes that differ or numbers out of range.
        """
        if not 0 <= run < self.counts.shape[0]:
            raise expected("run", f"0..{self.counts.shape[0] - 1}", str(run))
        prediction, truth = checked_maps(prediction, truth)
        numbers = checked_classes(classes, prediction, self.classes, ways=True)
        self._move_to(prediction.device)
        labels = numbers.shape[1] + 1
        pairs, strays = count_pairs(prediction, truth, labels)
        self._note_strays(strays, f"values of 0..{labels - 1}, 255 in the truth alone")
        true, correct = pairs.sum(2), intersection_of(pairs)
        kinds = torch.stack([correct, pairs.sum(1) - correct, true - correct], 2)
        kinds *= (true > 0).unsqueeze(2)
        numbers = torch.cat([torch.zeros_like(numbers[:, :1]), numbers], 1)
        self.counts[run].index_add_(0, numbers.flatten(), kinds.flatten(0, 1))

    def class_iou(self) -> dict[int, float]:
        """The IoU of the fold's classes, in percent, averaged over the runs."""
        return dict(zip(self.classes, self._by_class().mean(0).tolist(), strict=True))

    def class_iou_std(self) -> dict[int, float]:
        """The standard deviation of each class's IoU over the runs."""
        deviation = self._by_class().std(0, correction=0)
        return dict(zip(self.classes, deviation.tolist(), strict=True))

    def compute(self) -> dict[str, float]:
        """ "miou", "fb_iou", "background_iou", "foreground_iou", in percent, each also "_std"."""
        counts = self._seen()
        background, foreground = _iou(counts[:, 0]), _iou(counts[:, 1:].sum(1))
        runs = {
            "miou": self._by_class().mean(1),
            "fb_iou": (background + foreground) / 2,
            "background_iou": background,
            "foreground_iou": foreground,
        }
        deviations = {f"{name}_std": float(v.std(correction=0)) for name, v in runs.items()}
        return {**{name: float(values.mean()) for name, values in runs.items()}, **deviations}

    def _settings(self) -> tuple[object, ...]:
        return (*self.classes, *self.counts.shape)

    def _by_class(self) -> Tensor:
        return _iou(self._seen()[:, list(self.classes)])


def _iou(kinds: Tensor) -> Tensor:
    """TP / (TP + FP + FN) in percent of (..., 3)."""
    return 100 * kinds[..., 0] / kinds.sum(-1)
