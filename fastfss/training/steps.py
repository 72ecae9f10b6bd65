"""The training step of every method: a batch of episodes in, its losses out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from fastfss.errors import expected
from fastfss.methods import FewShotSegmenter
from fastfss.training.episodes import Batch
from fastfss.training.feature_cache import CachedEncoder
from fastfss.training.recipe import Recipe

Losses = dict[str, Tensor]
Step = Callable[[Any, Batch], Losses]


class TrainingStep(nn.Module):
    """A method and its step, as one module for DistributedDataParallel and torch.compile.

    Args:
        model: the method.
        size: pixels of both sides of the images.
        on_query: whether the query is its own support.
    """

    def __init__(self, model: FewShotSegmenter, size: int, *, on_query: bool = False) -> None:
        super().__init__()
        self.model = model
        self.size = size
        self.step = interactive_step if on_query else _step_of(model.method)

    def forward(self, batch: Batch) -> Losses:
        """Losses by name; "total" is what is minimised."""
        encoder = self.model.encoder
        if isinstance(encoder, CachedEncoder):
            encoder.serve(batch.maps)
            shape = (3, self.size, self.size)
            support = batch.support.expand(*batch.support.shape[:3], *shape)
            query = batch.query.expand(batch.query.shape[0], *shape)
        else:
            support = encoder.normalization.apply(batch.support.float() / 255)
            query = encoder.normalization.apply(batch.query.float() / 255)
        return self.step(self.model, replace(batch, support=support, query=query))


def check_step(recipe: Recipe) -> None:
    """Whether a recipe's episodes are what the method's training takes.

    Raises:
        ValueError: naming the setting that is not.
    """
    method, data = recipe.model.method, recipe.data
    _step_of(method)
    _check_interactive(recipe)
    if data.ways > 1 and method not in _SEVERAL_WAYS:
        wanted = f"1 for {method}, which is trained one way at a time"
        raise expected("data.ways", wanted, str(data.ways))
    for option, refused in _NOT_TRAINED.get(method, {}).items():
        if recipe.model.options.get(option) in refused:
            wanted = "another value: the images that it needs besides are not drawn by this loop"
            came = repr(recipe.model.options[option])
            raise expected(f"model.options.{option}", wanted, came)
    labels = "none"
    if method in _WITH_LABELS:
        labels = "ids"
    elif method == "ppnet" and recipe.model.options.get("variant") == "part_sem":
        labels = "base"
    if data.labels != labels and not (labels == "none" and method == "ppnet"):
        raise expected("data.labels", f"{labels!r} for {method}", repr(data.labels))
    if (method == "amp") != (data.sampler == "single"):
        wanted = '"single" for amp, and for no other method'
        raise expected("data.sampler", wanted, repr(data.sampler))
    if method in _ONE_SHOT and data.shots != 1:
        raise expected("data.shots", f"1: {method} is trained with one shot", str(data.shots))
    if (method == "imr-hsnet") != bool(data.activations):
        wanted = "a folder of activation maps for imr-hsnet, and for no other method"
        raise expected("data.activations", wanted, repr(data.activations))
    if recipe.validation.protocol:
        if method == "imr-hsnet":
            wanted = "none: no protocol reads the activation maps that imr-hsnet needs"
            raise expected("validation.protocol", wanted, repr(recipe.validation.protocol))
        if method == "amp" and recipe.model.options.get("background") != "episode":
            wanted = "'episode' beside validation.protocol, whose episodes would move the weights"
            came = repr(recipe.model.options.get("background", "running"))
            raise expected("model.options.background", wanted, came)
    if data.activations and (recipe.transform.kind != "square" or recipe.transform.flip):
        wanted = "no flip beside activation maps, which lie on disk as they are"
        raise expected("transform", wanted, f"{recipe.transform.kind} with flips or cuts")


def _check_interactive(recipe: Recipe) -> None:
    method, data = recipe.model.method, recipe.data
    if data.sampler != "interactive":
        if method in _ON_QUERY:
            wanted = f'"interactive" for {method}, which is annotated on the query'
            raise expected("data.sampler", wanted, repr(data.sampler))
        return
    if method not in (*_ON_QUERY, *_GUIDED):
        wanted = f"another for {method}: the guided networks learn from annotated queries"
        raise expected("data.sampler", wanted, repr(data.sampler))
    if data.shots != 1:
        wanted = "1: the query is the one support of an interactive episode"
        raise expected("data.shots", wanted, str(data.shots))
    if recipe.validation.protocol:
        wanted = "none beside interactive episodes: a protocol's supports are other images"
        raise expected("validation.protocol", wanted, repr(recipe.validation.protocol))


def query_step(model: Any, batch: Batch) -> Losses:
    """One way, a loss of the query's logits: HSNet, DCAMA, MLC, CANet, PGNet, PFENet, guided."""
    output = model(batch.support[:, 0], batch.support_mask[:, 0], batch.query)
    return _named(model.loss(output, batch.query_mask))


def interactive_step(model: Any, batch: Batch) -> Losses:
    """Guided networks whose annotation lies on the query, which is encoded once for both."""
    features = model.encode(batch.query)
    task = model.support_from([features], batch.support_mask[:, 0])
    return _named(model.loss(model.segment_from(features, task).logits, batch.query_mask))


def ssp_step(model: Any, batch: Batch) -> Losses:
    """SSP, whose query's and supports' own prototypes are trained too."""
    supports, masks = batch.support[:, 0], batch.support_mask[:, 0]
    output = model(supports, masks, batch.query, batch.query_mask)
    return _named(model.loss(output, batch.query_mask, masks))


def imr_step(model: Any, batch: Batch) -> Losses:
    """IMR-HSNet: activation maps of the label stand for masks, which are what is learned."""
    assert batch.support_activations is not None
    maps = batch.support_activations[:, 0]
    output = model(batch.support[:, 0], maps, batch.query, batch.query_activation)
    return _named(model.loss(output, batch.query_mask, batch.support_mask[:, 0, 0]))


def ways_step(model: Any, batch: Batch) -> Losses:
    """PANet: several ways."""
    output = model(batch.support, batch.support_mask, batch.query, batch.backgrounds)
    return _named(model.loss(output, batch.query_mask))


def ppnet_step(model: Any, batch: Batch) -> Losses:
    """PPNet: several ways and, in some variants, a semantic branch."""
    output = model(batch.support, batch.support_mask, batch.query, batch.backgrounds)
    if batch.support_labels is None or batch.query_labels is None:
        return _named(model.loss(output, batch.query_mask))
    labels = batch.support_labels, batch.query_labels
    return _named(model.loss(output, batch.query_mask, labels))


def denet_step(model: Any, batch: Batch) -> Losses:
    """DENet: all classes are segmented, the episode's own among them."""
    supports, masks = batch.support[:, 0], batch.support_mask[:, 0]
    output = model(supports, masks, batch.query, batch.classes[:, 0])
    return _named(model.loss(output, batch.query_labels, batch.query_mask))


def single_step(model: Any, batch: Batch) -> Losses:
    """AMP: ordinary segmentation of single images."""
    return _named(model.loss(model(batch.query), batch.query_labels))


# PPNet's unlabelled images, and MLC's mined ones (see docs/methods.md for that training).
_NOT_TRAINED: dict[str, dict[str, tuple[object, ...] | range]] = {
    "ppnet": {"variant": ("graph",)},
    "mlc": {"latent_classes": range(1, 255)},
}
_ONE_SHOT = ("hsnet", "imr-hsnet")
_SEVERAL_WAYS = ("panet", "ppnet")
_WITH_LABELS = ("denet", "amp")
_GUIDED = ("guided-early", "guided-late")
_ON_QUERY = ("interactive-early", "interactive-late")
_STEPS: dict[str, Step] = {
    **dict.fromkeys(("hsnet", "dcama", "mlc", "canet", "pgnet", "pfenet"), query_step),
    **dict.fromkeys(_GUIDED, query_step),
    **dict.fromkeys(_ON_QUERY, interactive_step),
    "imr-hsnet": imr_step,
    "ssp": ssp_step,
    "panet": ways_step,
    "ppnet": ppnet_step,
    "denet": denet_step,
    "amp": single_step,
}


def _step_of(method: str) -> Step:
    if method not in _STEPS:
        raise expected("model.method", f"one of {', '.join(sorted(_STEPS))}", repr(method))
    return _STEPS[method]


def _named(losses: Tensor | Losses) -> Losses:
    return {"total": losses} if isinstance(losses, Tensor) else losses
