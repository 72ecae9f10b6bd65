"""A set in memory: pictures of one or two rectangles, a class each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastfss.data.sets import Item, MaskSet


class Blocks(MaskSet):
    """`count` images; image i shows class 1 + i % classes and, every third, the next class too."""

    def __init__(
        self, name: str, classes: int, count: int, *, size: tuple[int, int] = (60, 80)
    ) -> None:
        self.name, self.root, self.ignores = name, Path("/blocks"), True
        self.classes = {number: f"class {number}" for number in range(1, classes + 1)}
        self._labels = [self._draw(number, size) for number in range(count)]
        self.items = [
            Item(
                f"{number:04}",
                Path(f"{number}.jpg"),
                Path(f"{number}.png"),
                {c: int((one == c).sum()) for c in self.classes if bool((one == c).any())},
                size,
            )
            for number, one in enumerate(self._labels)
        ]

    def image(self, number: int) -> Tensor:
        levels = (self._labels[number].long() * 37 + 40) % 256
        return levels.to(torch.uint8).expand(3, -1, -1).contiguous()

    def labels(self, number: int) -> Tensor:
        return self._labels[number].clone()

    def _draw(self, number: int, size: tuple[int, int]) -> Tensor:
        generator = np.random.default_rng(number)
        labels = torch.zeros(size, dtype=torch.uint8)
        count = len(self.classes)
        for turn in range(2 if number % 3 == 0 else 1):
            top, left = generator.integers(0, size[0] // 3), generator.integers(0, size[1] // 3)
            height, width = size[0] // 2, size[1] // (2 + turn)
            labels[top : top + height, left : left + width] = 1 + (number + turn) % count
        labels[:2] = 255
        return labels
