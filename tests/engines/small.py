"""Small models of the methods that engines are promised for, whose masks hold both labels."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fastfss import Task, create_model
from fastfss.engines import Manifest
from fastfss.engines.check import label_iou
from fastfss.engines.examples import (
    ExportSettings,
    example_images,
    example_masks,
    sized,
)
from fastfss.engines.export import export_engine
from fastfss.methods import FewShotSegmenter
from fastfss.result import Result

SHOTS = 2


@dataclass(frozen=True)
class Small:
    """What is exported of a method in tests; PFENet wants 8 n + 1 pixels, others multiples."""

    size: tuple[int, int]
    encoder: str = "resnet18"
    layers: tuple[str, ...] | None = None
    options: dict[str, bool | int | float | str] = field(default_factory=dict)
    seed: int = 0

    def settings(self, **changes: object) -> ExportSettings:
        held: dict[str, object] = {"size": self.size, "shots": SHOTS, "options": self.options}
        return ExportSettings(**{**held, **changes})  # type: ignore[arg-type]


SMALL = {
    "ssp": Small((65, 97), layers=("layer2",)),
    "panet": Small((64, 64), layers=("layer2",)),
    "pfenet": Small((65, 65), layers=("layer2", "layer3", "layer4")),
    "hsnet": Small((64, 64), layers=("layer2", "layer3", "layer4"), options={"fusion": "mean"}),
    "dcama": Small((96, 96), layers=("layer1", "layer2", "layer3", "layer4")),
    # Its logits are of one head, which no bias sets apart: of this seed they are.
    "guided-late": Small((72, 88), layers=("layer2",), seed=7),
}


@cache
def model(method: str) -> FewShotSegmenter:
    """At its engine's size, random, its logits shifted so that half of `photographs` is object."""
    small = SMALL[method]
    torch.manual_seed(small.seed)
    network = create_model(method, encoder=small.encoder, layers=small.layers, **small.options)
    network = sized(network, small.settings())
    last = [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.out_channels == 2]
    if last:
        task = network.fit(supports())
        scores = [network.predict(photo, task).scores.ravel() for photo in photographs()]
        middle = torch.from_numpy(np.concatenate(scores)).median()
        assert last[-1].bias is not None
        with torch.no_grad():
            last[-1].bias[1] -= middle.logit()
    return network


def export(method: str, out: Path, **settings: object) -> Manifest:
    """Export a small model, quietly."""
    small = SMALL[method]
    return export_engine(model(method), out, small.settings(**settings), report=lambda _: None)


def annotated(size: tuple[int, int], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A photograph, uint8 (3, H, W), with a bright ellipse, and the ellipse's mask."""
    mask = example_masks(1, size, seed=seed)
    image = example_images(mask, seed=seed)[0].mul(255).to(torch.uint8)
    return image, mask[0]


def photographs() -> list[torch.Tensor]:
    """Queries of several sizes."""
    return [annotated(size, seed)[0] for seed, size in enumerate([(90, 120), (64, 64), (151, 77)])]


def supports(shots: int = SHOTS) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Annotated images."""
    return [annotated((90, 120), 10 + seed) for seed in range(shots)]


def fitted(method: str, *, shots: int = SHOTS, name: str = "ellipse") -> Task:
    """A task of the model itself."""
    return model(method).fit(supports(shots), name=name)


def assert_same_mask(found: Result, wanted: Result) -> None:
    """Scores alike, and labels but where two are equally likely to five digits."""
    assert found.names == wanted.names
    assert found.labels.shape == wanted.labels.shape
    assert np.abs(found.scores - wanted.scores).max() < 1e-3
    ranked = np.sort(np.concatenate([1 - wanted.scores.max(0, keepdims=True), wanted.scores]), 0)
    certain = ranked[-1] - ranked[-2] > 2e-5
    assert certain.mean() > 0.97
    labels = (torch.from_numpy(np.where(certain, one.labels, 0)) for one in (found, wanted))
    assert label_iou(*labels) >= 0.999
