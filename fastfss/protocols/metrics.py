"""The accumulators behind published figures; `update` per batch, `compute` at the end."""

from __future__ import annotations

import torch
from torch import Tensor

from fastfss.errors import expected

IGNORED = 255


class ConfusionMeter:
    """SSP's and MLC's own protocol: one confusion histogram over all labels and episodes.

    mIoU is the mean of TP / (truth + prediction - TP) over the classes 1.. that occurred.

    Args:
        labels: how many labels there are, background included (21 for PASCAL, 81 for COCO).
    """

    def __init__(self, labels: int) -> None:
        if labels < 2:
            raise expected("labels", "at least 2, background included", str(labels))
        self.histogram = torch.zeros(labels, labels, dtype=torch.int64)  # truth, prediction

    def update(self, prediction: Tensor, truth: Tensor, classes: Tensor) -> None:
        """Add a batch.

        Args:
            prediction: (B, H, W) of {0, 1}.
            truth: (B, H, W) of {0, 1, 255}; 255 is skipped.
            classes: (B,) the label that 1 stands for in each episode.

        Raises:
            ValueError: for shapes that differ or labels out of range.
        """
        labels = self.histogram.shape[0]
        _check(prediction, truth, classes, low=1, high=labels - 1)
        label = classes.view(-1, 1, 1).to(prediction.device).long()
        kept = truth != IGNORED
        pairs = (truth.long() * label) * labels + prediction.long() * label
        counts = torch.bincount(pairs[kept], minlength=labels * labels)
        self.histogram += counts.view(labels, labels).to(self.histogram.device)

    def compute(self) -> dict[str, float]:
        """ "miou" in percent over the classes that occurred; NaN before any did."""
        matrix = self.histogram.double()
        union = matrix.sum(0) + matrix.sum(1) - matrix.diagonal()
        return {"miou": 100 * float((matrix.diagonal() / union)[1:].nanmean())}


class FoldMeter:
    """HSNet's protocol: per class, intersection and union of background and foreground summed.

    A class that never occurred counts as 0; unions are at least 1 where divided by.

    Args:
        classes: the fold's class numbers.
    """

    def __init__(self, classes: list[int]) -> None:
        if not classes:
            raise expected("classes", "at least one class number", "none")
        self.classes = torch.tensor(classes)
        size = int(self.classes.max()) + 1
        self.intersection = torch.zeros(size, 2, dtype=torch.int64)
        self.union = torch.zeros(size, 2, dtype=torch.int64)

    def update(self, prediction: Tensor, truth: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Add a batch; arguments as in ConfusionMeter.update, `classes` being class numbers.

        Returns:
            Intersection and union of this batch, (B, 2) each: background, foreground.
        """
        _check(prediction, truth, classes, low=0, high=self.union.shape[0] - 1)
        kept = truth != IGNORED
        predicted = torch.stack([(prediction == v) & kept for v in (0, 1)], 1).flatten(2)
        true = torch.stack([(truth == v) & kept for v in (0, 1)], 1).flatten(2)
        intersection, union = (predicted & true).sum(2).cpu(), (predicted | true).sum(2).cpu()
        self.intersection.index_add_(0, classes.cpu().long(), intersection)
        self.union.index_add_(0, classes.cpu().long(), union)
        return intersection, union

    def compute(self) -> dict[str, float]:
        """ "miou" and "fb_iou" in percent."""
        intersection = self.intersection[self.classes].double()
        union = self.union[self.classes].double()
        per_class = intersection[:, 1] / union[:, 1].clamp_min(1)
        sides = intersection.sum(0) / union.sum(0).clamp_min(1)
        return {"miou": 100 * float(per_class.mean()), "fb_iou": 100 * float(sides.mean())}


def _check(prediction: Tensor, truth: Tensor, classes: Tensor, *, low: int, high: int) -> None:
    if prediction.ndim != 3 or prediction.shape != truth.shape:
        came = f"{tuple(prediction.shape)} and {tuple(truth.shape)}"
        raise expected("prediction and truth", "(B, H, W) both", came)
    if classes.shape != prediction.shape[:1]:
        raise expected("classes", f"({prediction.shape[0]},)", str(tuple(classes.shape)))
    if classes.numel() and not (low <= int(classes.min()) and int(classes.max()) <= high):
        raise expected("classes", f"numbers from {low} to {high}", str(classes.tolist()))
