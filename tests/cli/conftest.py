"""Pictures in a folder, and the program run in this process with a fake model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastfss.cli import main
from tests.cli.fake_model import FakeModel

BRIGHT, GREY = 230, 120


def draw(path: Path, *, seed: int, height: int = 30, width: int = 40) -> np.ndarray:
    """Write a dark picture with a bright and a grey rectangle; return the labels 0, 1, 2."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((height, width), dtype=np.uint8)
    top, left = rng.integers(2, height // 3), rng.integers(2, width // 3)
    labels[top : top + height // 3, left : left + width // 3] = 1
    labels[-5:, -6:] = 2
    levels = np.array([20, BRIGHT, GREY])[labels] + rng.integers(-9, 10, labels.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(levels.astype(np.uint8)).convert("RGB").save(path)
    return labels


def draw_mask(path: Path, labels: np.ndarray) -> None:
    Image.fromarray(labels).save(path)


@dataclass
class Outcome:
    code: int
    out: str
    err: str


@dataclass
class Program:
    """`fastfss predict` in this process."""

    folder: Path
    run: Callable[..., Outcome]
    truth: dict[str, np.ndarray]
    model: FakeModel = field(default_factory=FakeModel)
    built: int = 0

    @property
    def results(self) -> Path:
        return self.folder / "results"

    def predict(self, *options: object, queries: object = None, out: Path | None = None) -> Outcome:
        """Run with the one-shot support set of the bright rectangle."""
        support = (self.folder / "support.png", self.folder / "support_mask.png")
        query = (
            queries if isinstance(queries, list | tuple) else [queries or self.folder / "photos"]
        )
        return self.run(
            *("predict", "--support", *support, "--name", "bright"),
            *("--query", *query, "--out", out or self.results, *options),
        )

    def report(self) -> dict[str, Any]:
        return json.loads((self.results / "predictions.json").read_text())

    def images(self) -> dict[str, dict[str, Any]]:
        """What the report says of each image, by file name, without the seconds."""
        return {
            Path(image["file"]).name: {key: image[key] for key in image.keys() - {"seconds"}}
            for image in self.report()["images"]
        }


@pytest.fixture
def program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Program:
    """Support and three photos of different sizes, and the program with a fake model."""

    def run(*arguments: object) -> Outcome:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return Outcome(code, captured.out, captured.err)

    labels = draw(tmp_path / "support.png", seed=0)
    draw_mask(tmp_path / "support_mask.png", (labels == 1).astype(np.uint8))
    draw_mask(tmp_path / "support_labels.png", labels)
    truth = {
        f"{name}.png": draw(tmp_path / "photos" / f"{name}.png", seed=seed, width=40 + seed)
        for seed, name in enumerate("abc", start=1)
    }
    program = Program(tmp_path, run, truth)

    def build(*_: object, **__: object) -> FakeModel:
        program.built += 1
        return program.model

    monkeypatch.setattr("fastfss.cli.predict.build_model", build)
    return program
