"""mIoU of held-out classes, quickly, while a run goes on."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fastfss.methods import FewShotSegmenter
from fastfss.protocols import FoldMeter
from fastfss.training.checkpoints import random_state, set_random_state
from fastfss.training.data import TrainingData
from fastfss.training.processes import Processes
from fastfss.training.recipe import ValidationConfig


def validate(
    model: FewShotSegmenter, data: TrainingData, config: ValidationConfig, group: Processes
) -> dict[str, float]:
    """Figures of the held-out classes, the same for any number of processes.

    Episodes: the class uniformly, then its images without repetition; images and masks are read,
    and results brought back to the image's own size, as `fit` and `predict` do it. Intersection and
    union are summed per class, as HSNet has it. No published protocol; see docs/protocols.md for
    those.

    Args:
        model: as it is to be measured; its mode and all random states are as before afterwards.
        data: held-out classes and their images.
        config: how many episodes.
        group: the processes that share them.

    Returns:
        "miou" and "fb_iou" in percent.
    """
    classes = sorted(data.held_out)
    meter = FoldMeter(classes)
    with _evaluating(model, group):
        for number in range(group.rank, config.episodes, group.count):
            generator = random.Random(f"{config.seed} validation {number}")
            chosen = generator.choice(classes)
            *supports, query = generator.sample(data.held_out[chosen], config.shots + 1)
            images, truth = data.validation, data.validation.mask(query, chosen)
            shots = [(images.image(one), images.mask(one, chosen)) for one in supports]
            result = model.predict(images.image(query), model.fit(shots, mask_value=1))
            found = torch.from_numpy(result.labels)[None].long().to(group.device)
            meter.update(found, truth[None].to(group.device), torch.tensor([chosen]))
    if group.count > 1:
        meter.all_reduce()
    return meter.compute()


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
