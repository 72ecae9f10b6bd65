"""DENet's two metrics, bIOU and fIOU; its AMP, CANet and PGNet are measured with the first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from fastfss.data.masks import IGNORED
from fastfss.errors import expected
from fastfss.protocols._counting import (
    Meter,
    check_labels,
    checked_classes,
    checked_maps,
    intersection_of,
    mean_of,
    union_of,
)

Predictions = Literal["binary", "classes", "published"]


class DENetBinaryMeter(Meter):
    """DENet's bIOU: intersection and union of the foreground, summed per class.

    Episodes whose truth shows no foreground are skipped, false positives included. Ignored pixels
    count as background. mIoU is the mean over the classes seen.

    Args:
        labels: how many labels there are, background included (21 for PASCAL, 81 for COCO).
        predictions: what `update` is given: "binary" masks of 0 and 1, or "classes", the label maps
            of AMP, whose foreground is where they hold the episode's class. "published" takes such
            maps as the published trainer of AMP did, whose figures mean little: the intersection is
            where truth + prediction is 2, the union where it is 1 or 2.
    """

    def __init__(self, labels: int, predictions: Predictions = "binary") -> None:
        check_labels(labels)
        if predictions not in get_args(Predictions):
            raise expected("predictions", f"one of {get_args(Predictions)}", repr(predictions))
        super().__init__(labels, 3)  # class, intersection / union / episodes
        self.predictions = predictions

    def update(self, prediction: Tensor, truth: Tensor, classes: Tensor) -> None:
        """Add a batch; with W ways, every way is an entry of its own.

        Args:
            prediction: (B, H, W) of {0, 1}, or of 0..labels - 1 (see `predictions`).
            truth: (B, H, W) of {0, 1, 255}; 255 is background.
            classes: (B,) the class that 1 stands for in each entry.

        Raises:
            ValueError: for shapes that differ or labels out of range.
        """
        labels = self.counts.shape[0]
        prediction, truth = checked_maps(prediction, truth)
        numbers = checked_classes(classes, prediction, range(1, labels))
        self._move_to(prediction.device)
        top = 1 if self.predictions == "binary" else labels - 1
        known = (truth == 0) | (truth == 1) | (truth == IGNORED)
        known &= (prediction >= 0) & (prediction <= top)
        self._note_strays((~known).count_nonzero(), f"truth of 0, 1, 255, prediction of 0..{top}")
        true = truth == 1
        if self.predictions == "published":
            both = torch.where(true, prediction == 1, prediction == 2)
            either = both | torch.where(true, prediction == 0, prediction == 1)
        else:
            sought = numbers if self.predictions == "classes" else torch.ones_like(numbers)
            predicted = prediction == sought.view(-1, 1, 1)
            both, either = true & predicted, true | predicted
        seen = true.flatten(1).any(1)
        sums = [both.flatten(1).count_nonzero(1), either.flatten(1).count_nonzero(1), seen.long()]
        self.counts.index_add_(0, numbers, torch.stack(sums, 1) * seen.unsqueeze(1))

    def class_iou(self) -> dict[int, float]:
        """The IoU of the classes seen, in percent."""
        counts = self._seen()
        seen = counts[:, 2].nonzero().flatten().tolist()
        return {number: float(100 * counts[number, 0] / counts[number, 1]) for number in seen}

    def compute(self) -> dict[str, float]:
        """ "miou" and "mean_bf_iou" in percent; NaN before any foreground.

        mean_bf_iou is the published name. It is the foreground's IoU over all classes; the
        background has no part in it, unlike in the FB-IoU of other protocols.
        """
        total = self._seen().sum(0)
        return {"miou": mean_of(self.class_iou()), "mean_bf_iou": float(100 * total[0] / total[1])}

    def _settings(self) -> tuple[object, ...]:
        return (*self.counts.shape, self.predictions)


class DENetFullMeter(Meter):
    """DENet's fIOU: a confusion matrix of all labels, and the mean IoU over all of them.

    Args:
        labels: how many labels there are, background included.
        skip_absent: leave labels that neither truth nor prediction ever had out of the mean; as
            published they count as 0.
    """

    def __init__(self, labels: int, *, skip_absent: bool = False) -> None:
        check_labels(labels)
        super().__init__(labels, labels)  # truth, prediction
        self.skip_absent = skip_absent

    @property
    def histogram(self) -> Tensor:
        """Pixels by truth and prediction, (labels, labels)."""
        return self.counts

    def update(self, prediction: Tensor, truth: Tensor) -> None:
        """Add a batch.

        Args:
            prediction: (B, H, W) of 0..labels - 1.
            truth: (B, H, W); pixels with other values than 0..labels - 1 are skipped.

        Raises:
            ValueError: for shapes that differ or predictions out of range.
        """
        labels = self.counts.shape[0]
        prediction, truth = checked_maps(prediction, truth)
        self._move_to(prediction.device)
        known = (prediction >= 0) & (prediction < labels)
        self._note_strays((~known).count_nonzero(), f"predictions of 0..{labels - 1}")
        known &= (truth >= 0) & (truth < labels)
        # Skipped pixels fall into a bin behind the others: to pick the rest would wait for a GPU.
        bins = torch.where(known, truth.long() * labels + prediction.long(), labels * labels)
        self.counts += _histogram(bins.flatten(), labels * labels + 1)[:-1].view(labels, labels)

    def class_iou(self) -> dict[int, float]:
        """The IoU of every label, in percent; of the absent ones 0, or left out (`skip_absent`)."""
        matrix = self._seen()
        union = union_of(matrix)
        iou = 100 * intersection_of(matrix) / union.clamp_min(1e-8)
        present = (union > 0).tolist()
        return {
            number: value
            for number, value in enumerate(iou.tolist())
            if present[number] or not self.skip_absent
        }

    def compute(self) -> dict[str, float]:
        """ "miou" in percent, the background among the labels."""
        return {"miou": mean_of(self.class_iou())}

    def subclass_mean(self, classes: Sequence[int], *, divide_by_all: bool = True) -> float:
        """The sum of these classes' IoU divided by the number of *all* labels, as published.

        Args:
            classes: the classes, for example the novel ones.
            divide_by_all: False divides by the number of `classes`, which is their mean.

        Returns:
            In percent; an absent class adds 0.
        """
        labels = self.counts.shape[0]
        if not classes or not set(classes) <= set(range(labels)):
            raise expected("classes", f"numbers of 0..{labels - 1}", str(list(classes)))
        iou = self.class_iou()
        total = sum(iou.get(number, 0.0) for number in classes)
        return total / (labels if divide_by_all else len(classes))

    def _settings(self) -> tuple[object, ...]:
        return (*self.counts.shape, self.skip_absent)


def _histogram(bins: Tensor, size: int) -> Tensor:
    """bincount, which on a GPU would fetch the largest value first."""
    if bins.device.type == "cpu":
        return torch.bincount(bins, minlength=size)
    return bins.new_zeros(size).scatter_add_(0, bins, torch.ones_like(bins))
