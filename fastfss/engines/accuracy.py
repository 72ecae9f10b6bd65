"""What an engine's precision costs on annotated images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fastfss.data import ImageLike, MaskLike, read_image, read_mask
from fastfss.data.masks import IGNORED
from fastfss.engines.base import Engine
from fastfss.engines.in_torch import EagerEngine
from fastfss.engines.loading import backend_class
from fastfss.engines.manifest import Cost, Manifest
from fastfss.errors import expected
from fastfss.task import Task

Pair = tuple[ImageLike, MaskLike]


@dataclass(frozen=True)
class CheckClass:
    """Annotated images of one class: the engine's shots first, at least one query behind them."""

    name: str
    pairs: Sequence[Pair]


def measured_cost(folder: Path, manifest: Manifest, classes: Sequence[CheckClass]) -> Cost:
    """The mIoU of eager float32 and of the folder's graphs, each class with its first images.

    Raises:
        ValueError: a class of too few images, or an engine of several ways.
    """
    if manifest.ways != 1:
        raise expected("check_set", "an engine of one way", f"{manifest.ways} ways")
    cpu = torch.device("cpu")
    exact, low = EagerEngine(folder, manifest, cpu), low_engine(folder, manifest)
    scores: dict[str, list[float]] = {"exact": [], "low": []}
    images = 0
    for one in classes:
        if len(one.pairs) <= manifest.shots:
            wanted = f"more than {manifest.shots} annotated images of {one.name!r}"
            raise expected("check_set", wanted, str(len(one.pairs)))
        task = exact.fit(one.pairs[: manifest.shots], name=one.name)
        queries = one.pairs[manifest.shots :]
        images += len(queries)
        for name, engine in (("exact", exact), ("low", low)):
            scores[name].append(class_iou(engine, task, queries))
    means = {name: 100 * float(np.mean(found)) for name, found in scores.items()}
    return Cost(means["exact"], means["low"], len(classes), images)


def low_engine(folder: Path, manifest: Manifest) -> Engine:
    """The first engine that computes a folder's graphs in their precision on this CPU.

    Raises:
        NotImplementedError: none does.
    """
    cpu = torch.device("cpu")
    reasons = []
    for backend in ("onnxruntime", "openvino"):
        kind = backend_class(backend)
        reason = kind.why_not(manifest, cpu)
        if reason is None:
            return kind(folder, manifest, cpu)
        reasons.append(f"{backend}: {reason}")
    raise NotImplementedError(f"the precision's cost cannot be measured: {'; '.join(reasons)}")


def class_iou(engine: Engine, task: Task, queries: Sequence[Pair]) -> float:
    """Intersection over union of all queries of a class together, pixels of 255 left out."""
    intersection = union = 0
    for image, mask in queries:
        pixels = read_image(image, argument="check image")
        size = (pixels.shape[1], pixels.shape[2])
        truth = read_mask(mask, size=size, argument="check mask").numpy()
        found = engine.predict(pixels, task).labels > 0
        counted = truth != IGNORED
        intersection += int((found & (truth == 1) & counted).sum())
        union += int(((found | (truth == 1)) & counted).sum())
    return intersection / max(union, 1)
