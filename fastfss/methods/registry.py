"""Methods by name."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastfss.encoders import Encoder, create_encoder
from fastfss.errors import expected, expected_kind
from fastfss.methods.base import FewShotSegmenter
from fastfss.methods.mlc import MLC
from fastfss.methods.ssp import SSP

METHODS: dict[str, type[SSP] | type[MLC]] = {SSP.method: SSP, MLC.method: MLC}


def list_models() -> list[str]:
    """The names that create_model takes."""
    return sorted(METHODS)


def create_model(
    method: str,
    *,
    encoder: str | Encoder = "deep_resnet50",
    weights: str | Path | None = None,
    layers: Sequence[str] | None = None,
    size: int | None = None,
    **options: Any,
) -> FewShotSegmenter:
    """Make a method, ready to fit and predict.

    Args:
        method: one of list_models(), for example "ssp".
        encoder: one of fastfss.encoders.list_encoders(), or an Encoder.
        weights: a published checkpoint of the method, a file of `save`, or an encoder file (.pth or
            .safetensors); "imagenet" downloads the encoder's; None leaves random weights.
        layers: the encoder's feature maps to match; the published ones by default.
        size: the longer side to which fit and predict bring images; None keeps their size.
        **options: the method's own, for example refine=False for SSP.

    Returns:
        The model, in evaluation mode.

    Raises:
        ValueError: for an unknown method, encoder or layer; CheckpointError for weights that do not
            fit.
        TypeError: for an option that the method does not have.
    """
    if method not in METHODS:
        raise expected("method", f"one of {', '.join(list_models())}", repr(method))
    known = set(inspect.signature(METHODS[method]).parameters) - {"encoder", "layers", "size"}
    if unknown := sorted(options.keys() - known):
        wanted = f"those of method {method!r} ({', '.join(sorted(known)) or 'none'})"
        raise expected_kind("options", wanted, ", ".join(unknown))
    if isinstance(encoder, str):
        encoder = create_encoder(encoder, weights=weights)
        origin = "random" if weights is None else str(weights)
    elif weights is not None:
        raise expected("weights", "None together with a ready Encoder", repr(weights))
    else:
        origin = "given"
    if layers is not None:
        options["layers"] = tuple(layers)
    model = METHODS[method](encoder, size=size, **options)
    model.weights_origin = origin
    return model.eval()
