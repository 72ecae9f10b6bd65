"""Thin networks of the guided family, images and annotations for their tests."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from fastfss import create_model
from fastfss.encoders import fcn_vgg

IGNORED = 255


@cache
def network(name: str, **options: Any) -> Any:
    """A network of the family, thin, with weights that make its outputs vary."""
    torch.manual_seed(len(name))
    with pytest.MonkeyPatch.context() as patch:
        thin = tuple((count, channels // 8) for count, channels in fcn_vgg._BLOCKS)
        patch.setattr(fcn_vgg, "_BLOCKS", thin)
        model = create_model(name, **options)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.ndim > 1:
                fan_in = parameter[0].numel()
                parameter.normal_(std=(2 / fan_in) ** 0.5)
            else:
                parameter.normal_(std=0.05)
            if key.endswith("conv1_1.weight"):
                parameter.div_(60)  # inputs are 0..255
    return model.requires_grad_(False)


def pictures(*sizes: tuple[int, int], batch: int = 1, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, 3, *size, generator=generator) * 60 for size in sizes]


def points(
    size: tuple[int, int], *values: int, count: int = 4, batch: int = 1, seed: int = 0
) -> Tensor:
    """Label maps (B, H, W) with `count` points of each value, the rest unannotated."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.full((batch, size[0] * size[1]), IGNORED, dtype=torch.uint8)
    for row in labels:
        places = torch.randperm(row.numel(), generator=generator)[: count * len(values)]
        for place, value in zip(places.chunk(max(1, len(values))), values, strict=False):
            row[place] = value
    return labels.view(batch, *size)


def mask_of(labels: Tensor, way: int) -> Tensor:
    """A label map as the mask of one object: the others are unannotated."""
    return torch.where(labels == way, 1, torch.where(labels == 0, 0, IGNORED)).byte()


def dense(size: tuple[int, int], batch: int = 1) -> Tensor:
    labels = torch.zeros(batch, *size, dtype=torch.uint8)
    labels[:, size[0] // 4 : -size[0] // 3, size[1] // 3 : -size[1] // 5] = 1
    return labels
