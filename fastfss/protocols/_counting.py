"""What the meters share: counts that add up in any order, and the checks of what is counted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from fastfss.data.masks import IGNORED
from fastfss.errors import expected, expected_kind


class Meter(ABC):
    """What all meters share.

    Values that no label has (a mask of 0 and 255, say) are an error: of `update` for tensors on the
    CPU, of `compute` for tensors on a GPU, where `update` does not wait for the answer.

    Attributes:
        counts: all that was seen, int64.
    """

    def __init__(self, *shape: int) -> None:
        self.counts = torch.zeros(shape, dtype=torch.int64)
        self._strays = torch.zeros((), dtype=torch.int64)

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """The figures, in percent."""

    @abstractmethod
    def class_iou(self) -> dict[int, float]:
        """The IoU of each class, in percent."""

    def merge(self, other: Meter) -> None:
        """Add what another meter of the same kind and settings has seen.

        Raises:
            TypeError: the other is not of this kind.
            ValueError: its settings differ.
        """
        if type(other) is not type(self):
            raise expected_kind("other", type(self).__name__, type(other).__name__)
        if other._settings() != self._settings():
            raise expected("other", f"settings {self._settings()}", str(other._settings()))
        self.counts += other.counts.to(self.counts.device)
        self._strays += other._strays.to(self._strays.device)

    def all_reduce(self) -> None:
        """Add up the meters of all processes of torch.distributed, in every process.

        Where its backend needs GPU tensors (NCCL), every process must have seen a batch.
        """
        for total in (self.counts, self._strays):
            torch.distributed.all_reduce(total)

    def _settings(self) -> tuple[object, ...]:
        return tuple(self.counts.shape)

    def _move_to(self, device: torch.device) -> None:
        if self.counts.device != device:
            # Tensors made in inference mode could not be added to outside it.
            with torch.inference_mode(False):
                self.counts = self.counts.to(device)
                self._strays = self._strays.to(device)

    def _note_strays(self, count: Tensor, wanted: str) -> None:
        if count.device.type == "cpu" and int(count):
            raise expected("prediction and truth", wanted, f"other values in {int(count)} pixels")
        self._strays += count

    def _seen(self) -> Tensor:
        if strays := int(self._strays):
            raise expected("prediction and truth", "labels only", f"others in {strays} pixels")
        return self.counts.cpu().double()


def intersection_of(pairs: Tensor) -> Tensor:
    return pairs.diagonal(dim1=-2, dim2=-1)


def union_of(pairs: Tensor) -> Tensor:
    return pairs.sum(-1) + pairs.sum(-2) - intersection_of(pairs)


def mean_of(figures: dict[int, float]) -> float:
    return sum(figures.values()) / len(figures) if figures else float("nan")


def count_pairs(prediction: Tensor, truth: Tensor, labels: int) -> tuple[Tensor, Tensor]:
    """Pixels by truth and prediction, (B, labels, labels), and how many hold other values.

    A comparison and a count for every pair: a third of the time of bincount on the CPU (4 masks of
    473 x 473: 5 ms against 19 ms on one thread), and nothing that waits for a GPU.
    """
    true = [(truth == value).flatten(1) for value in range(labels)]
    predicted = [(prediction == value).flatten(1) for value in range(labels)]
    rows = [torch.stack([(t & p).count_nonzero(1) for p in predicted], 1) for t in true]
    pairs = torch.stack(rows, 1)
    return pairs, (truth != IGNORED).count_nonzero() - pairs.sum()


def checked_maps(prediction: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Both, checked and on the device of the prediction."""
    if prediction.ndim != 3 or prediction.shape != truth.shape:
        came = f"{tuple(prediction.shape)} and {tuple(truth.shape)}"
        raise expected("prediction and truth", "(B, H, W) both", came)
    return prediction, truth.to(prediction.device, non_blocking=True)


def checked_classes(
    classes: Tensor, prediction: Tensor, allowed: Sequence[int], *, ways: bool = False
) -> Tensor:
    """(B,) int64 on the device of the prediction; (B, W) with `ways`."""
    if ways and classes.ndim == 1:
        classes = classes.unsqueeze(1)
    batch = prediction.shape[0]
    if classes.ndim != 1 + ways or classes.shape[0] != batch or 0 in classes.shape[1:]:
        wanted = f"({batch}, W) or ({batch},)" if ways else f"({batch},)"
        raise expected("classes", wanted, str(tuple(classes.shape)))
    if wrong := sorted(set(classes.flatten().tolist()) - set(allowed)):
        low, high = min(allowed), max(allowed)
        raise expected("classes", f"numbers of the {len(allowed)} in {low}..{high}", str(wrong))
    return classes.long().to(prediction.device, non_blocking=True)


def checked_fold(classes: Sequence[int], low: int = 0) -> tuple[int, ...]:
    if not classes or len(set(classes)) < len(classes) or min(classes) < low:
        raise expected("classes", f"different class numbers of {low} or more", str(list(classes)))
    return tuple(int(number) for number in classes)


def check_labels(labels: int) -> None:
    if labels < 2:
        raise expected("labels", "at least 2, background included", str(labels))
