"""A model for tests of the command line: bright pixels are the object, in no time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fastfss.annotation import Annotation, SupportMask, annotation_mask
from fastfss.data import read_image, read_mask
from fastfss.errors import expected
from fastfss.result import Result
from fastfss.task import Task


class FakeModel:
    """Way n is where the image is about as bright as the object of support set n.

    Args:
        delay: how long each prediction takes, in seconds.
        fail_on: predict raises this error on images of that width.
    """

    def __init__(
        self, delay: float = 0.0, fail_on: tuple[int, BaseException] | None = None
    ) -> None:
        self.delay = delay
        self.fail_on = fail_on
        self.predicted = 0
        self.masks: list[Tensor] = []

    def point_width(self, size: tuple[int, int]) -> float:
        return 3.0

    def fit(
        self, shots: Sequence[tuple[Path, SupportMask]], *, name: str, mask_value: int | None
    ) -> Task:
        levels = []
        for number, (image_file, said) in enumerate(shots):
            image = read_image(image_file, argument=f"shots[{number}] image")
            if isinstance(said, Annotation):
                mask = annotation_mask(said, (image.shape[1], image.shape[2]))
            else:
                mask = read_mask(said, value=mask_value, argument=f"shots[{number}] mask")
            self.masks.append(mask)
            levels.append(image.float().mean(0)[mask == 1].mean())
        return Task("fake", {"level": torch.stack(levels)[None]}, name, {"weights": "fake"})

    def check_task(self, task: Task) -> None:
        if task.method != "fake":
            raise expected("task", "a task of method 'fake'", f"one of {task.method!r}")

    def predict(self, query: Tensor, task: Sequence[Task]) -> Result:
        time.sleep(self.delay)
        if self.fail_on is not None and query.shape[2] == self.fail_on[0]:
            raise self.fail_on[1]
        self.predicted += 1
        levels = torch.stack([one.tensors["level"].mean() for one in task])
        distance = (query.float().mean(0) - levels[:, None, None]).abs() / 255
        probabilities = 1 - distance
        labels = torch.where(distance.amin(0) < 0.1, distance.argmin(0) + 1, 0)
        return Result.from_probabilities(probabilities, labels, names=[one.name for one in task])
