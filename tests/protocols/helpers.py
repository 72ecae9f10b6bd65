"""Episodes to measure, and what all meters are made and fed with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastfss.protocols import (
    ConfusionMeter,
    DENetBinaryMeter,
    DENetFullMeter,
    FoldMeter,
    Meter,
    PANetMeter,
    PFENetMeter,
)

FOLD = [6, 7, 8, 9, 10]
LABELS = 21


def episodes(seed: int, batch: int = 7, ways: int = 1, void: bool = True) -> list[Tensor]:
    """Predictions, truths and classes (B, W): some truths without some ways, some with 255."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 14, 2)
    prediction = rng.integers(0, ways + 1, (batch, height, width))
    truth = rng.integers(0, ways + 1, (batch, height, width))
    for episode in range(batch):
        truth[episode][truth[episode] == rng.integers(0, ways + 3)] = 0
    if void:
        truth[rng.random(truth.shape) < 0.1] = 255
    classes = np.stack([rng.choice(FOLD[:4], ways, replace=False) for _ in range(batch)])
    return [torch.from_numpy(a.astype(np.uint8)) for a in (prediction, truth)] + [
        torch.from_numpy(classes)
    ]


@dataclass
class Kind:
    """One kind of meter and the batch it takes."""

    make: Callable[[], Meter]
    batch: Callable[[int], tuple[Any, ...]]


def _binary(seed: int) -> tuple[Any, ...]:
    prediction, truth, classes = episodes(seed)
    return prediction, truth, classes[:, 0]


def _full(seed: int) -> tuple[Any, ...]:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, LABELS + 3, (3, 9, 5)).astype(np.uint8)
    truth[truth >= LABELS] = 255
    prediction = rng.integers(0, LABELS, truth.shape).astype(np.uint8)
    return torch.from_numpy(prediction), torch.from_numpy(truth)


def _class_maps(seed: int) -> tuple[Any, ...]:
    prediction, truth, classes = _binary(seed)
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 12, prediction.shape)), truth, classes


KINDS = {
    "ssp": Kind(lambda: ConfusionMeter(LABELS), _binary),
    "hsnet": Kind(lambda: FoldMeter(FOLD), _binary),
    "pfenet": Kind(lambda: PFENetMeter(FOLD), _binary),
    "panet": Kind(lambda: PANetMeter(FOLD, runs=2), lambda seed: (*episodes(seed), seed % 2)),
    "panet 2 ways": Kind(lambda: PANetMeter(FOLD), lambda seed: tuple(episodes(seed, ways=2))),
    "denet": Kind(lambda: DENetBinaryMeter(LABELS), _binary),
    "denet classes": Kind(lambda: DENetBinaryMeter(LABELS, "classes"), _class_maps),
    "denet published": Kind(lambda: DENetBinaryMeter(LABELS, "published"), _class_maps),
    "denet full": Kind(lambda: DENetFullMeter(LABELS), _full),
}


def same(left: dict[Any, float], right: dict[Any, float]) -> bool:
    """Equal to the last bit, NaN included."""
    return left.keys() == right.keys() and np.array_equal(
        list(left.values()), list(right.values()), equal_nan=True
    )
