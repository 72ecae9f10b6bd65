"""What DENet's classifier is made of: base classes' rows, and one that a support set gives."""

from __future__ import annotations

import math
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastfss.ops import masked_average_pool

GateAverage = Literal["map", "mask"]

_EPS = 1e-3  # added to the area of a mask


class WeightEstimator(nn.Module):
    """Gives the row of a new class, and holds those of the base classes.

        a = sum(Y F) / (h w), g = sigmoid(conv(relu(conv(a))))
        p = conv(sum(Y g F) / (sum Y + 1e-3))

    The gate g is one number a channel, so it is applied to the mean instead of the map.

    Args:
        classes: rows of the classifier.
        channels: of features and rows.
        dropout: of the gate's logits and of the classifier's numbers.
        gate_average: see DENet.
    """

    def __init__(
        self, classes: int, channels: int, dropout: float, gate_average: GateAverage
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(classes, channels))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        gate = nn.Sequential(
            nn.Conv2d(channels, channels, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 1),
            nn.Dropout(dropout),
            nn.Sigmoid(),
        )
        # Dictionaries for the published key names, gam.gate.* and map.linear.*.
        self.gam = nn.ModuleDict({"gate": gate})
        self.map = nn.ModuleDict({"linear": nn.Conv2d(channels, channels, 1)})
        self.dropout = dropout
        self.gate_average = gate_average
        self._kept: set[int] = set()

    def prototypes(
        self,
        features: Tensor,  # (M, C, h, w)
        objects: Tensor,  # (M, 1, h, w) of {0, 1}, float32
    ) -> Tensor:  # (M, C)
        """The rows that M supports give."""
        mean = masked_average_pool(features, objects, eps=_EPS).squeeze(1)
        gated = self.gate(mean, objects) * mean
        return cast(Tensor, self.map["linear"](gated[:, :, None, None]).flatten(1))

    def gate(
        self,
        mean: Tensor,  # (M, C)
        objects: Tensor,  # (M, 1, h, w)
    ) -> Tensor:  # (M, C)
        """The gate g of masked means."""
        if self.gate_average == "map":
            share = (objects.sum((2, 3)) + _EPS) / objects[0].numel()
            mean = mean * share.to(mean.dtype)
        return cast(Tensor, self.gam["gate"](mean[:, :, None, None]).flatten(1))

    def base_rows(self, batch: int) -> Tensor:
        """The classifier once an item, (B, C, D); in training each copy with its own dropout."""
        copies = self.weight.expand(batch, -1, -1)
        return F.dropout(copies, self.dropout) if self.training else copies

    # ---- support_free

    def keeps(self, labels: Tensor) -> bool:
        """Whether all of these class ids (B,) have a kept row."""
        return self._kept.issuperset(labels.tolist())

    def kept(self, labels: Tensor) -> Tensor:
        """The kept rows (B, D) of class ids (B,)."""
        return self.weight.detach()[labels]

    @torch.no_grad()
    def keep(self, rows: Tensor, labels: Tensor) -> None:
        """Write rows (B, D) of class ids (B,) into the classifier, the first one of each id."""
        for row, label in zip(rows, labels.tolist(), strict=True):
            if label not in self._kept:
                self.weight[label].copy_(row)
                self._kept.add(label)
