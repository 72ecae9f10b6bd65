"""Small models of the methods that engines are promised for, whose masks hold both labels."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch
from torch import nn

from fastfss import Task, create_model
from fastfss.engines import Manifest
from fastfss.engines.examples import (
    ExportSettings,
    example_images,
    example_masks,
    example_of,
    sized,
)
from fastfss.engines.export import export_engine
from fastfss.methods import FewShotSegmenter

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
    "guided-late": Small((72, 88), layers=("layer2",), seed=24),
}


@cache
def model(method: str) -> FewShotSegmenter:
    """Random weights, shifted so that half of an example's pixels are foreground."""
    small = SMALL[method]
    torch.manual_seed(small.seed)
    network = create_model(method, encoder=small.encoder, layers=small.layers, **small.options)
    network.eval()
    if last := [one for one in network.modules() if isinstance(one, nn.Conv2d) and is_head(one)]:
        settings = small.settings()
        margins = example_of(sized(network, settings), settings).prediction.margins
        assert last[-1].bias is not None
        with torch.no_grad():
            last[-1].bias[1] -= margins.median()
    return network


def is_head(layer: nn.Conv2d) -> bool:
    """Whether a convolution makes the logits of background and foreground."""
    return layer.out_channels == 2


def export(method: str, out: Path, **settings: object) -> Manifest:
    """Export a small model, quietly."""
    small = SMALL[method]
    return export_engine(model(method), out, small.settings(**settings), report=lambda _: None)


def annotated(size: tuple[int, int], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A photograph, uint8 (3, H, W), with a bright ellipse, and the ellipse's mask."""
    mask = example_masks(1, size, seed=seed)
    image = example_images(mask, seed=seed)[0].mul(255).to(torch.uint8)
    return image, mask[0]


def fitted(method: str, *, shots: int = SHOTS, name: str = "ellipse") -> Task:
    """A task of the model itself."""
    return model(method).fit([annotated((90, 120), seed) for seed in range(shots)], name=name)
