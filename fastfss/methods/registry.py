"""Methods by name."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastfss.encoders import Encoder, create_encoder, load_encoder
from fastfss.errors import expected, expected_kind
from fastfss.methods.amp import AMP
from fastfss.methods.base import FewShotSegmenter
from fastfss.methods.canet import CANet
from fastfss.methods.cue_fusion import CueFusion
from fastfss.methods.dcama import DCAMA
from fastfss.methods.denet import DENet
from fastfss.methods.fcn32s import FCN32s
from fastfss.methods.guided import GuidedLate
from fastfss.methods.guided_early import GuidedEarly
from fastfss.methods.guided_networks import GUIDED_NETWORKS
from fastfss.methods.hsnet import HSNet
from fastfss.methods.imr_hsnet import IMRHSNet
from fastfss.methods.info import MethodInfo
from fastfss.methods.interactive import InteractiveEarly, InteractiveLate
from fastfss.methods.mlc import MLC
from fastfss.methods.named_models import NAMED_MODELS, NamedModel
from fastfss.methods.panet import PANet
from fastfss.methods.pfenet import PFENet
from fastfss.methods.pgnet import PGNet
from fastfss.methods.ppnet import PPNet
from fastfss.methods.propagation import LabelPropagation
from fastfss.methods.ssp import SSP
from fastfss.weights import read_checkpoint

_CLASSES: tuple[type[FewShotSegmenter], ...] = (
    AMP,
    CANet,
    CueFusion,
    DCAMA,
    DENet,
    FCN32s,
    GuidedEarly,
    GuidedLate,
    HSNet,
    IMRHSNet,
    InteractiveEarly,
    InteractiveLate,
    LabelPropagation,
    MLC,
    PANet,
    PFENet,
    PGNet,
    PPNet,
    SSP,
)
METHODS = {method.method: method for method in _CLASSES}


def list_models(*, every: bool = False) -> list[str]:
    """The names that create_model takes.

    Args:
        every: also those of the guided networks that are no few-shot methods: annotated on the
            query itself, or not at all. create_model takes the published names of all guided
            networks besides (`fastfss.methods.GUIDED_NETWORKS`).
    """
    return sorted(name for name, kind in METHODS.items() if every or kind.few_shot)


def model_info(method: str) -> MethodInfo:
    """The card of a method: paper, published backbones and figures, licences.

    Raises:
        ValueError: for an unknown method.
    """
    return _class_of(method).info


def create_model(
    method: str,
    *,
    encoder: str | Encoder | None = None,
    weights: str | Path | None = None,
    layers: Sequence[str] | None = None,
    size: int | None = None,
    **options: Any,
) -> FewShotSegmenter:
    """Make a method, ready to fit and predict.

    Args:
        method: "default" or "default-video", the package's own models, whose weights come with it;
            "default-large", DINOv2 by timm; or one of list_models(), for example "ssp", or the
            published name of a guided network, such as "cofeat-late", whose encoder and options
            then are the defaults.
        encoder: one of fastfss.encoders.list_encoders(), or an Encoder; the first of the published
            ones by default.
        weights: a published checkpoint of the method, a file of `save`, or an encoder file (.pth or
            .safetensors); "imagenet" downloads the encoder's; None leaves random weights.
        layers: the encoder's feature maps to use; the published ones by default.
        size: the pixels to which fit and predict bring images, of the longer side or of both as the
            method has it; the published size by default, or none where any serves.
        **options: the method's own, for example refine=False for SSP.

    Returns:
        The model, in evaluation mode.

    Raises:
        ValueError: for an unknown method, encoder or layer; CheckpointError for weights that do not
            fit.
        TypeError: for an option that the method does not have.
    """
    if method in GUIDED_NETWORKS:
        network = GUIDED_NETWORKS[method]
        method, encoder = network.method, encoder or network.encoder
        options = {**network.options, **options}
    if method in NAMED_MODELS:
        return _named(NAMED_MODELS[method], encoder, weights, layers, size, options)
    kind = _class_of(method)
    known = set(inspect.signature(kind).parameters) - {"encoder", "layers", "size"}
    if unknown := sorted(options.keys() - known):
        wanted = f"those of method {method!r} ({', '.join(sorted(known)) or 'none'})"
        raise expected_kind("options", wanted, ", ".join(unknown))
    if layers is not None:
        options["layers"] = tuple(layers)
    if isinstance(encoder, Encoder):
        if weights is not None:
            raise expected("weights", "None together with a ready Encoder", repr(weights))
        model = kind(encoder, size=size, **options)
        model.weights_origin = "given"
        return model.eval()
    name = encoder or kind.info.encoders[0]
    if weights is None or weights == "imagenet":
        model = kind(create_encoder(name, weights=weights), size=size, **options)
        model.weights_origin = weights or "random"
        return model.eval()
    source, tensors = str(weights), read_checkpoint(weights)
    if kind.head_keys and any(key.startswith(kind.head_keys) for key in tensors):
        model = kind(create_encoder(name), size=size, **options)
        model.load_checkpoint(tensors, source)
    else:
        model = kind(load_encoder(create_encoder(name), tensors, source), size=size, **options)
        model.weights_origin = source
    return model.eval()


def _named(
    named: NamedModel,
    encoder: str | Encoder | None,
    weights: str | Path | None,
    layers: Sequence[str] | None,
    size: int | None,
    options: dict[str, Any],
) -> FewShotSegmenter:
    if encoder is not None:
        wanted = f"None, since {named.encoder} belongs to the model"
        raise expected("encoder", wanted, encoder if isinstance(encoder, str) else encoder.name)
    source = weights or named.weights
    ready: str | Encoder = named.encoder
    if named.packaged is None:
        ready = create_encoder(named.encoder, weights=source, **named.encoder_options)
    elif weights is None and not METHODS[named.method].head_keys:
        tensors = read_checkpoint(source)
        inside = {key: one for key, one in tensors.items() if key.startswith("encoder.")}
        ready = load_encoder(create_encoder(named.encoder), inside, str(source))
    model = create_model(
        named.method,
        encoder=ready,
        weights=source if isinstance(ready, str) else None,
        layers=layers or named.layers,
        size=size or named.size,
        **{**named.options, **options},
    )
    model.weights_origin = str(source)
    return model


def _class_of(method: str) -> type[FewShotSegmenter]:
    if method in NAMED_MODELS:
        method = NAMED_MODELS[method].method
    if method in GUIDED_NETWORKS:
        method = GUIDED_NETWORKS[method].method
    if method not in METHODS:
        raise expected(
            "method", f"one of {', '.join([*NAMED_MODELS, *list_models(every=True)])}", repr(method)
        )
    return METHODS[method]
