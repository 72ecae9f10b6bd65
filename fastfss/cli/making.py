"""Models as commands name them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import typer

from fastfss.methods import NAMED_MODELS, FewShotSegmenter, create_model
from fastfss.methods.named_models import DEFAULT, DEFAULT_VIDEO


def made_model(
    method: str,
    backbone: str | None,
    layers: tuple[str, ...] | None,
    weights: str | None,
    options: Mapping[str, Any],
    *,
    size: int | None = None,
    tell: str | None = "masks",
) -> FewShotSegmenter:
    """A model, the same each time even where its weights are random.

    Args:
        method, backbone, layers, weights, size, options: of the command.
        tell: what means nothing with random weights; None says nothing of it.
    """
    torch.manual_seed(0)
    model = create_model(
        method, encoder=backbone, weights=weights, layers=layers, size=size, **options
    )
    if tell is not None and "random" in (model.weights_origin, model.head_origin):
        typer.echo(f"warning: random weights: the {tell} mean nothing (--weights)", err=True)
    return model


def chosen_video_method(backbone: str | None, weights: str | None) -> str:
    """Label propagation, with the package's weights where no others are named."""
    own = backbone is None and weights is None
    return DEFAULT_VIDEO if own else NAMED_MODELS[DEFAULT_VIDEO].method


def chosen_click_model(method: str, device: str) -> FewShotSegmenter | None:
    """The default model beside the default method; else clicks are the method's own."""
    if method != DEFAULT_VIDEO:
        return None
    return create_model(DEFAULT).to(device).for_inference()
