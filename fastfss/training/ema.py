"""A moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class MovingAverage:
    """e := d e + (1 - d) w after every step, d = min(decay, (1 + n) / (10 + n)) at step n.

    Parameters that are trained alone are averaged; buffers are the model's own.

    Args:
        model: whose weights are averaged.
        decay: how slowly.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.count = 0
        self.model = model
        self.average = {
            name: parameter.detach().clone()
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights of a step in."""
        decay = min(self.decay, (1 + self.count) / (10 + self.count))
        self.count += 1
        parameters = dict(self.model.named_parameters())
        for name, average in self.average.items():
            average.lerp_(parameters[name], 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model with the averaged weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def state_dict(self) -> dict[str, object]:
        """What load_state_dict takes."""
        return {"count": self.count, "average": self.average}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Go on from a state."""
        count, average = state["count"], state["average"]
        assert isinstance(count, int) and isinstance(average, dict)
        self.count = count
        for name, tensor in average.items():
            self.average[name].copy_(tensor)

    @torch.no_grad()
    def _swap(self) -> None:
        parameters: dict[str, Tensor] = dict(self.model.named_parameters())
        for name, average in self.average.items():
            kept = parameters[name].clone()
            parameters[name].copy_(average)
            average.copy_(kept)
