"""Inputs of dense_match's tests."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tests.kernels.helpers import random, weights


@dataclass(frozen=True)
class Size:
    """Tiles of the interpreter are 16 x 16."""

    channels: int
    query: tuple[int, ...]
    key: tuple[int, ...]
    values: int

    def __str__(self) -> str:
        return f"{self.channels}-{self.query}-{self.key}-{self.values}".replace(" ", "")

    def maps(
        self, dtype: torch.dtype, device: str, *, last: bool = False, batch: int = 2
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Query, key and value of the dtype, and soft weights, some zero."""
        shapes = (self.channels, *self.query), (self.channels, *self.key), (self.values, *self.key)
        made = [random(batch, *shape, seed=seed) for seed, shape in enumerate(shapes)]
        if last:
            made = [m.movedim(1, -1).contiguous().movedim(-1, 1) for m in made]
        query, key, value = (m.to(dtype).to(device) for m in made)
        return query, key, value, weights(batch, *self.key).to(device)


ODD = Size(21, (5, 7), (3, 6), 5)
LONG = Size(16, (17,), (50,), 1)
POINT = Size(1, (1, 1), (1, 1), 1)
ONE_POSITION = Size(5, (1,), (1,), 3)
SIZES = [POINT, ONE_POSITION, ODD, LONG]
