"""A training step with its encoder and with the encoder's maps from the disk, in the same run.

A step is what the loop does: read two episodes, forward, backward, and the optimiser's step.
DCAMA's takes 16 s either way, so its row takes two and a half minutes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.compare import compare
from fastfss.data.sets import open_set
from fastfss.training import build_cache, build_model, load_recipe
from fastfss.training.data import prepare_data
from fastfss.training.episodes import EpisodeDataset, joined
from fastfss.training.feature_cache import CachedEncoder
from fastfss.training.optimisers import make_optimiser
from fastfss.training.steps import TrainingStep
from tests.training.shapes import write_shapes

BATCH = 2
# The published size and backbone of each method, and the recipe for a CPU.
RECIPES = (
    *("hsnet-cpu", "hsnet-pascal", "dcama-pascal"),
    *("denet-pascal", "canet-pascal", "amp-pascal"),
)
FROZEN = ("denet", "canet", "amp")  # published with the statistics of each batch


@pytest.mark.parametrize("name", RECIPES)
def test_a_step(benchmark: Any, name: str, tmp_path: Path) -> None:
    changes = ["model.weights=random", "data.set=folder", "data.folds=random", "data.minimum=1"]
    changes += [
        "data.minimum_share=0",
        "data.skip_rare=true",
        "data.episodes=20",
        "transform.flip=0.5",
    ]
    if load_recipe(name).model.method in FROZEN:
        changes.append("model.options.batch_statistics=false")
    root = write_shapes(tmp_path / "shapes", images=16, size=375)
    recipe = load_recipe(name, [*changes, f"data.root={root}", "validation.every=0"])
    images = open_set("folder", root)
    data = prepare_data(recipe, images, images)
    torch.manual_seed(0)
    model = build_model(recipe)
    numbers = sorted({n for members in data.sampler.large.values() for n in members})
    size = recipe.transform.size
    cache = build_cache(model, images, numbers, size=size, folder=tmp_path / "maps", mirrored=True)
    encoder, cached = model.encoder, CachedEncoder(model.encoder)
    optimiser = make_optimiser(model, recipe.optimiser)
    stepper = TrainingStep(model.train(), size)

    def step(maps: bool) -> Callable[[], None]:
        dataset = EpisodeDataset(
            images, data.split, data.sampler, recipe.data, recipe.transform, cache if maps else None
        )
        count = itertools.count()

        def run() -> None:
            model.encoder = cached if maps else encoder
            batch = joined([dataset[next(count)] for _ in range(BATCH)])
            optimiser.zero_grad(set_to_none=True)
            stepper(batch)["total"].backward()
            optimiser.step()

        return run

    forms = {"encoder": step(maps=False), "cache": step(maps=True)}
    measured = compare(forms, seconds=20, min_rounds=3, caches="warm")
    benchmark.pedantic(forms["cache"], rounds=1)
    ratio = round(measured.ratio("encoder", "cache"), 2)
    mib = round(cache.nbytes / len(numbers) / 2 / (1 << 20), 2)
    benchmark.extra_info.update(measured.as_dict(), ratio=ratio, mib_an_image=mib)
    print(f"\n{name}, {size} px, {BATCH} episodes a step, {mib} MiB an image: {measured}")
