"""Models as commands name them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
import typer

from fastfss.engines import ENCODER_BACKENDS, Manifest, accelerate
from fastfss.engines.encoding import EncoderEngine
from fastfss.errors import expected
from fastfss.methods import NAMED_MODELS, FewShotSegmenter, create_model
from fastfss.methods.named_models import DEFAULT, DEFAULT_VIDEO

Model = TypeVar("Model", bound=FewShotSegmenter)

MANY = 20  # images, for which it pays to prepare an encoder
_SMALL = (96, 128)


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


def inference_model(
    model: Model, device: str, backend: str = "auto", *, images: int | None = None
) -> Model:
    """A model ready for images on a device, its encoder run by what is fastest there.

    Args:
        model: in float32, on the CPU.
        device, backend: of the command.
        images: how many there are to be; None for any number. For a few of them nothing is
            prepared that takes seconds, unless a backend is named.
    """
    model = model.to(device).for_inference()
    if backend == "auto" and images is not None and images < MANY:
        return model
    return accelerate(model, backend, report=lambda text: typer.echo(text, err=True))


def prepare_encoder(model: FewShotSegmenter) -> str:
    """Have the encoder's engine made now, not with the first image; what computes the maps."""
    with torch.inference_mode():
        model.encode(torch.zeros(1, 3, *_SMALL, device=model.device))
    engine = model.encoder.engine
    return engine.chosen if isinstance(engine, EncoderEngine) else "eager"


def chosen_click_model(method: str, device: str, backend: str = "auto") -> FewShotSegmenter | None:
    """The default model beside the default method; else clicks are the method's own."""
    if method != DEFAULT_VIDEO:
        return None
    return inference_model(create_model(DEFAULT), device, backend)


def chosen_method(backbone: str | None, weights: str | None) -> str:
    """The method where none is named: the one that needs nothing, or SSP for any backbone."""
    return DEFAULT if backbone is None and weights is None else "ssp"


def engine_method(
    engine: Path | None, backend: str, given: Mapping[str, object | None]
) -> str | None:
    """The method of an --engine, or None without one.

    Args:
        engine, backend: the options.
        given: what an engine decides itself, by option; None where it is not given.
    """
    if engine is None:
        if backend not in ("auto", *ENCODER_BACKENDS):
            raise typer.BadParameter(f"--backend {backend} runs an --engine; got none")
        return None
    for flag, one in given.items():
        if one is not None:
            raise typer.BadParameter(f"{flag}: the --engine has its own; got {one}")
    return Manifest.read(engine).method


def method_options(
    written: Sequence[str], refine: bool | None
) -> dict[str, bool | int | float | str]:
    """Read NAME=VALUE pairs: true, false and numbers are what they look like, the rest is text."""
    options: dict[str, bool | int | float | str] = {} if refine is None else {"refine": refine}
    for pair in written:
        name, equals, text = pair.partition("=")
        if not equals or not name.isidentifier():
            raise typer.BadParameter(f"--option: expected NAME=VALUE, got {pair!r}")
        if name in options:
            raise typer.BadParameter(f"--option: {name} is given twice")
        options[name] = _value(text)
    return options


def _value(text: str) -> bool | int | float | str:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


def check_device(device: str) -> None:
    """Raise ValueError for a device that this machine does not have."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise expected("--device", "a device of this machine", f"{device!r} ({error})") from None
