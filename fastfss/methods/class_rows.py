"""Classifiers with a row a class into which few-shot classes are put: DENet's and AMP's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastfss.errors import expected, expected_kind
from fastfss.methods.ways import largest_other
from fastfss.task import Task

Labels = int | Sequence[int] | Tensor


@dataclass(frozen=True, eq=False)
class ClassLogits:
    """Logits of all classes of an extended classifier, at the head's size.

    Attributes:
        full: (B, C', h, w): background, base classes, and the ways in their labels' channels or,
            those without a label, at the end.
        places: (B, W) int64: the channel of each way.
    """

    full: Tensor
    places: Tensor

    def scores(self) -> Tensor:
        """(B, 1 + W, h, w): the largest logit of all that is no way, then each way's own."""
        index = self._index()
        rest = self.full.scatter(1, index, -torch.inf).amax(dim=1, keepdim=True)
        return torch.cat([rest, self.full.gather(1, index)], dim=1)

    def binary(self) -> Tensor:
        """(B * W, 2, h, w), an item's ways together: the largest logit of all other classes, the
        other ways among them, and the way's own.
        """
        scores = self.scores()
        return torch.stack([largest_other(scores), scores[:, 1:]], dim=2).flatten(0, 1)

    def _index(self) -> Tensor:
        return self.places[:, :, None, None].expand(-1, -1, *self.full.shape[2:])


def checked_labels(
    labels: Labels | None, batch: int, classes: int, device: torch.device
) -> Tensor | None:
    """Class ids (B,) int64 on a device, from one for all or one an episode; None where none came.

    Raises:
        TypeError: ids that are not integers.
        ValueError: another number of ids than episodes, or an id that is no object's.
    """
    if labels is None:
        return None
    ids = torch.as_tensor(labels)
    if ids.is_floating_point() or ids.dtype == torch.bool:
        raise expected_kind("labels", "integers", str(ids.dtype))
    ids = ids.long().reshape(-1)
    if len(ids) not in (1, batch):
        raise expected("labels", f"one class id, or {batch}, one an episode", f"{len(ids)} ids")
    if not bool(((ids >= 1) & (ids < classes)).all()):
        raise expected("labels", f"class ids of 1 to {classes - 1}", str(ids.tolist()))
    return ids.to(device).expand(batch)


def label_of(task: Task) -> Tensor | None:
    """The class id of each episode (1 or B,) of a task, or None where it has none.

    The shots of a task are of one class, so the first one's counts.
    """
    label = task.tensors.get("label")
    return None if label is None else label[:, 0].long()


def insert_rows(
    weight: Tensor,  # (B, C, D)
    rows: Tensor,  # (B, W, D)
    labels: Sequence[Tensor | None],  # W times (1 or B,) int64
) -> tuple[Tensor, Tensor]:  # (B, C', D), (B, W) int64
    """Put a row a way into each item's classifier: in place of its label's, or at the end.

    Returns:
        The extended classifiers, C' = C + the ways without a label, and where each way's row is.
    """
    batch, classes, width = weight.shape
    at: list[Tensor] = []
    appended: list[Tensor] = []
    for way, label in enumerate(labels):  # which ways have a label is known without the device
        if label is None:
            at.append(torch.full((batch,), classes + len(appended), device=weight.device))
            appended.append(rows[:, way : way + 1])
        else:
            at.append(label.expand(batch))
    places = torch.stack(at, dim=1)
    extended = torch.cat([weight, *appended], dim=1)
    if len(appended) < len(labels):
        extended = extended.scatter(1, places.unsqueeze(2).expand(-1, -1, width), rows.to(extended))
    return extended, places


def apply_rows(
    rows: Tensor,  # (B, R, D)
    features: Tensor,  # (B, D, h, w)
) -> Tensor:  # (B, R, h, w)
    """The product of every row with every position."""
    logits = rows @ features.flatten(2)
    return logits.view(*logits.shape[:2], *features.shape[2:])
