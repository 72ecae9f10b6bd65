"""mIoU of held-out classes, quickly, while a run goes on."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fastfss.data.sparse import sparsify
from fastfss.methods import FewShotSegmenter
from fastfss.protocols import FoldMeter, evaluate
from fastfss.training.checkpoints import random_state, set_random_state
from fastfss.training.data import TrainingData
from fastfss.training.processes import Processes
from fastfss.training.recipe import FewPoints, ValidationConfig


def validate(
    model: FewShotSegmenter, data: TrainingData, config: ValidationConfig, group: Processes
) -> dict[str, float]:
    """Figures of the held-out classes, the same for any number of processes.

    By a published protocol where the recipe names one. Else the episodes are: the class uniformly,
    then its images without repetition, or one where the query is its own support; images and masks
    are read, and results brought back to the image's own size, as `fit` and `predict` do it.
    Intersection and union are summed per class, as HSNet has it.

    Args:
        model: as it is to be measured; its mode and all random states are as before afterwards.
        data: held-out classes and their images.
        config: how many episodes.
        group: the processes that share them.

    Returns:
        "miou" and, where there is one, "fb_iou", in percent.
    """
    if data.published is not None:
        published = data.published
        with _evaluating(model, group):
            evaluation = evaluate(model, published.protocol, published.images, published.episodes)
        figures = evaluation.figures
        named = {"miou": figures.miou, "fb_iou": figures.fb_iou}
        return {name: value for name, value in named.items() if value is not None}
    classes = sorted(data.held_out)
    meter = FoldMeter(classes)
    with _evaluating(model, group):
        for number in range(group.rank, config.episodes, group.count):
            generator = random.Random(f"{config.seed} validation {number}")
            chosen = generator.choice(classes)
            if data.sampler.on_query:
                supports = [query := generator.choice(data.held_out[chosen])]
            else:
                *supports, query = generator.sample(data.held_out[chosen], config.shots + 1)
            masks = [_annotated(data, n, chosen, config.points, generator) for n in supports]
            found = _segment(model, data, supports, masks, query, chosen)
            truth = data.validation.mask(query, chosen)
            meter.update(
                found[None].to(group.device), truth[None].to(group.device), torch.tensor([chosen])
            )
    if group.count > 1:
        meter.all_reduce()
    return meter.compute()


def _annotated(
    data: TrainingData, number: int, cls: int, points: FewPoints, generator: random.Random
) -> Tensor:
    """What a support says of a class: (H, W) of {0, 1, 255}."""
    mask: Tensor = data.validation.mask(number, cls)
    return mask if points == "dense" else sparsify(mask, points, generator)


def _segment(
    model: FewShotSegmenter,
    data: TrainingData,
    supports: Sequence[int],
    masks: Sequence[Tensor],
    query: int,
    cls: int,
) -> Tensor:
    """The query's labels (H, W)."""
    images = data.validation
    shots = [(images.image(n), mask) for n, mask in zip(supports, masks, strict=True)]
    image = images.image(query)
    if data.activations is None:
        result = model.predict(image, model.fit(shots, mask_value=1))
        return torch.from_numpy(result.labels).long()
    maps = [data.activations.read(images.items[n], cls)[None] for n in (*supports, query)]
    pictures, _ = model.read_shots([*shots, (image, torch.ones(image.shape[1:]))], mask_value=1)
    *of_supports, of_query = (one.to(model.device) for one in maps)
    task = model.encode_support(pictures[:-1], of_supports)
    segment: Any = model.segment  # with the argument that IMR-HSNet has besides
    size = (image.shape[1], image.shape[2])
    prediction = segment(pictures[-1], task, size, query_map=of_query[None])
    labels: Tensor = prediction.labels[0].cpu()
    return labels


@contextmanager
def _evaluating(model: FewShotSegmenter, group: Processes) -> Iterator[None]:
    state, training = random_state(group.device), model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
        set_random_state(state, group.device)
