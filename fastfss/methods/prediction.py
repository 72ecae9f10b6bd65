"""What a method says of its queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastfss.result import Result


@dataclass(frozen=True, eq=False)
class Prediction:
    """What `segment` returns.

    Attributes:
        logits: (B, N + 1, H, W): background, then one channel a task. For one task the published
            pair of logits; for several, what was published for several ways, if it was, else 0 and
            the tasks' foreground-minus-background margins. Either way the argmax is the task with
            the largest margin, or background where none is positive.
        margins: (B, N, H, W): foreground minus background logit of each task.
        presence: (B, N), the probability that the task's class is in the query at all; None from
            methods that do not say.
    """

    logits: Tensor
    margins: Tensor
    presence: Tensor | None = None

    @property
    def labels(self) -> Tensor:
        """(B, H, W) int64: 0 background, n the n-th task."""
        # `max` finds the same index as `argmax`, the first of equals, on a CPU in a fifteenth of
        # the time: 2.4 ms instead of 36 for (1, 2, 480, 854).
        return self.logits.max(dim=1).indices

    @property
    def probabilities(self) -> Tensor:
        """(B, N, H, W): each task's foreground probability against its own background."""
        return self.margins.sigmoid()

    def of_region(self, region: tuple[int, int], size: tuple[int, int]) -> Prediction:
        """The part of a frame that an image fills, at the image's own size.

        Args:
            region: height and width of the part, in the top left of the logits.
            size: height and width of the image; bilinear, as images are brought to a frame.
        """

        def restored(maps: Tensor) -> Tensor:
            part = maps[..., : region[0], : region[1]]
            return F.interpolate(part, size, mode="bilinear", align_corners=False)

        return Prediction(restored(self.logits), restored(self.margins), self.presence)

    def result(self, names: Sequence[str], seconds: float) -> Result:
        """The first query's masks, scores and confidences as a person gets them.

        Args:
            names: of the N tasks.
            seconds: how long it took.
        """
        return Result.from_probabilities(
            self.probabilities[0],
            self.labels[0],
            names=names,
            presence=None if self.presence is None else self.presence[0],
            seconds=seconds,
        )

    @staticmethod
    def from_pairs(pairs: Sequence[Tensor], presence: Tensor | None = None) -> Prediction:
        """One task a pair of logits (B, 2, H, W), background and foreground, each for itself."""
        if len(pairs) == 1:
            return Prediction(pairs[0], pairs[0][:, 1:] - pairs[0][:, :1], presence)
        margins = torch.stack([pair[:, 1] - pair[:, 0] for pair in pairs], dim=1)
        return Prediction(F.pad(margins, (0, 0, 0, 0, 1, 0)), margins, presence)
