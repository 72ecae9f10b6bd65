"""Jobs for tests of `fastfss label`: a model that takes no time, and processes that die."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fastfss import Task
from fastfss.cli.label_shard import Labelling, Outcome, Shard, label_shard
from fastfss.result import Result
from tests.cli.conftest import BRIGHT
from tests.cli.fake_model import FakeModel


@dataclass(frozen=True)
class FakeJob:
    """Labels bright pixels; writes a line into `tried` for each image, named by its width.

    Attributes:
        die_at: the process kills itself over images of this width.
        deaths: how often in all.
        on_start: "die", or the text of an error.
    """

    out: Path
    tried: Path
    formats: tuple[str, ...] = ("masks", "coco")
    die_at: int = 0
    deaths: int = 0
    on_start: str = ""

    def start(self, device: str) -> Labelling:
        if self.on_start == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.on_start:
            raise ValueError(self.on_start)
        torch.set_num_threads(1)
        model = FakeModel()
        task = Task("fake", {"level": torch.full((1, 1), float(BRIGHT))}, "bright")

        def predict(image: Tensor) -> Result:
            width = image.shape[2]
            with self.tried.open("a") as file:
                file.write(f"{width}\n")
            tries = self.tried.read_text().split().count(str(width))
            if width == self.die_at and tries <= self.deaths:
                os.kill(os.getpid(), signal.SIGKILL)
            return model.predict(image, [task])

        def label(shard: Shard, on_image: Callable[[], None]) -> Outcome:
            return label_shard(shard, self.out, self.formats, predict, on_image)

        return label
