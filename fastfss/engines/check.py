"""Graphs in ONNX Runtime against eager PyTorch."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastfss.engines.base import LOGITS, model_of, task_input
from fastfss.engines.examples import LOW_DTYPES, Example, ExportSettings, example_of
from fastfss.engines.graphs import outputs_of
from fastfss.engines.manifest import Check, EngineError, Manifest
from fastfss.engines.onnx_runtime import run, session
from fastfss.methods import FewShotSegmenter

# Beyond, a graph and eager PyTorch do not compute the same: float32 sums in another order reach
# 1e-5 of the logits at most in all methods.
TOLERANCE = 1e-4
_EXAMPLES = 3
_LEAST_AGREEMENT = 99.9  # percent of pixels, in float32


def self_check(
    model: FewShotSegmenter, folder: Path, manifest: Manifest, settings: ExportSettings
) -> Check:
    """Compare both graphs with eager PyTorch on made-up images.

    Of the logits' errors the median counts. SSP selects positions by a threshold, and one whose
    probability is the threshold to the last bits is in or out by rounding: eager PyTorch itself
    then changes its logits by 3e-4 when its features change by 1e-7.

    Raises:
        EngineError: they differ by more than rounding: in float32 by more than 1e-4; the encode
            graph in fp16 and bf16 by more than twice as much as PyTorch in the same precision. Of
            int8 nothing is known beforehand, so that only the error is told.
    """
    _check_rebuilt(model, model_of(folder, manifest), example_of(model, settings))
    encode = session(_runnable(folder / manifest.encode.file, manifest))
    match = session(folder / manifest.match.file)
    encoded, bound, agreement = 0.0, TOLERANCE, 100.0
    errors, foreground = [], 0.0
    for seed in range(_EXAMPLES):
        example = example_of(model, _another_size(settings, seed), seed)
        maps = run(encode, manifest.encode, {"images": example.images})
        encoded = max(encoded, maps_error(maps, example.features.maps))
        if manifest.precision in LOW_DTYPES:
            bound = max(bound, 2 * _eager_error(model, example, manifest))
        outputs = expected_outputs(model, example)
        wanted = outputs[LOGITS].argmax(1)
        on_own_maps = _matched(match, manifest, example, dict(example.features.maps))
        errors.append(outputs_error(on_own_maps, outputs))
        labels = _matched(match, manifest, example, maps)[LOGITS].argmax(1)
        foreground += 100 * (wanted > 0).float().mean().item() / _EXAMPLES
        alike = (labels == wanted).float().mean().item()
        agreement = min(agreement, 100 * alike)
    matched = statistics.median(errors)
    check = Check(encoded, matched, agreement, _EXAMPLES, round(foreground, 3))
    if not (matched <= TOLERANCE and (manifest.precision == "int8" or encoded <= bound)):
        raise EngineError(
            f"self-check: the graphs differ from eager PyTorch: encode {encoded:.1e} (at most "
            f"{bound:.1e}), match {matched:.1e} (at most {TOLERANCE:.0e}); nothing was written"
        )
    if manifest.precision == "fp32" and agreement < _LEAST_AGREEMENT:
        raise EngineError(
            f"self-check: {agreement:.2f} % of the pixels are as in eager PyTorch, expected "
            f"{_LEAST_AGREEMENT} %; nothing was written"
        )
    return check


def _check_rebuilt(model: FewShotSegmenter, rebuilt: FewShotSegmenter, example: Example) -> None:
    """Raise unless the model that is made of the folder's weights and options is the exported one.

    Raises:
        EngineError: it is another: options that were not told.
    """
    wanted = expected_outputs(model, example)
    if outputs_error(expected_outputs(rebuilt, example), wanted) > TOLERANCE:
        raise EngineError(
            "options: expected all that the model was made with, but a model made with "
            "the same weights and the given options segments otherwise"
        )


def _another_size(settings: ExportSettings, seed: int) -> ExportSettings:
    """Where sizes are free the second example has one that no graph was traced with."""
    if not settings.dynamic or seed == 0:
        return settings
    height, width = settings.size
    return replace(settings, size=(height + 32, width + 64))


def _runnable(path: Path, manifest: Manifest) -> Path | bytes:
    """The graph as ONNX Runtime can compute it on the CPU, where bfloat16 has to be imitated."""
    if manifest.precision != "bf16":
        return path
    from fastfss.engines.bfloat16 import imitated

    return imitated(path)


def _matched(
    session: Any, manifest: Manifest, example: Example, maps: dict[str, Tensor]
) -> dict[str, Tensor]:
    ways = enumerate(example.tasks, start=1)
    held = {task_input(way, k): t for way, one in ways for k, t in one.tensors.items()}
    return run(session, manifest.match, {**maps, **held})


def expected_outputs(model: FewShotSegmenter, example: Example) -> dict[str, Tensor]:
    """The match graph's outputs by eager float32."""
    with torch.no_grad():
        found = model.grid_prediction(example.features, example.tasks)
        return outputs_of(found or model.segment_from(example.features, example.tasks))


def outputs_error(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> float:
    """Of the match graph's outputs the largest `relative_error`; infinite if one is missing."""
    if found.keys() != wanted.keys():
        return float("inf")
    return max(relative_error(found[name], one) for name, one in wanted.items())


def _eager_error(model: FewShotSegmenter, example: Example, manifest: Manifest) -> float:
    """The maps' error of PyTorch in the same low precision."""
    dtype = LOW_DTYPES[manifest.precision]
    low = model.for_inference(dtype=dtype)
    with torch.no_grad():
        maps = low.encode(example.images.to(dtype)).maps
    return maps_error({k: t.float() for k, t in maps.items()}, example.features.maps)


def maps_error(maps: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> float:
    """Of all maps the largest error, the norm of the difference by the norm."""
    errors = [float((maps[k] - t).norm() / t.norm().clamp_min(1e-30)) for k, t in wanted.items()]
    return max(errors) if all(e == e for e in errors) else float("nan")


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """Largest difference by largest magnitude; equal infinities are no difference."""
    found, wanted = found.detach(), wanted.detach()
    finite = wanted.isfinite()
    if not torch.equal(finite, found.isfinite()):
        return float("inf")
    scale = wanted[finite].abs().max().clamp_min(1e-30)
    return float((found[finite] - wanted[finite]).abs().max() / scale)


def label_iou(found: Tensor, wanted: Tensor) -> float:
    """Of the ways in two label maps the least intersection over union; 1 where both have none."""
    ious = [1.0]
    for way in wanted.unique().tolist():
        if way > 0:
            one, other = found == way, wanted == way
            ious.append(float((one & other).sum() / (one | other).sum()))
    return min(ious)
