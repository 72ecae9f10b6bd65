"""What a run is made of, in words and as a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

import fastfss
from fastfss.training.data import TrainingData, leaks_of
from fastfss.training.processes import Processes
from fastfss.training.recipe import Recipe
from fastfss.training.recipe_files import flat, recipe_digest


def run_record(
    recipe: Recipe,
    data: TrainingData,
    group: Processes,
    *,
    steps: int,
    trained: int,
    resumed_at: int,
) -> dict[str, Any]:
    """The contents of run.json.

    Args:
        recipe, data, group: of the run.
        steps: of the whole run.
        trained: how many parameters are.
        resumed_at: the step at which this process began.
    """
    run = recipe.run
    share = run.batch // (run.accumulate * group.count)
    leaks = leaks_of(recipe, data)
    learned = {number for members in data.sampler.large.values() for number in members}
    return {
        "effective_batch": run.batch,
        "batch": f"{share} episodes x {group.count} processes x {run.accumulate} parts",
        "steps": steps,
        "epochs": round(steps * run.batch / data.sampler.length, 3),
        "trained_parameters": trained,
        "base_classes": [data.names[number] for number in data.sampler.large],
        "held_out_classes": [data.names[number] for number in data.split.held_out],
        "images": len(learned),
        "images_that_show_held_out_classes": leaks.images,
        "validation_images_that_are_learned_from": len(leaks.shared),
        "held_out_pixels": held_out_pixels(recipe),
        "device": str(group.device),
        "resumed_at": resumed_at,
        "fastfss": fastfss.__version__,
        "torch": torch.__version__,
        "recipe": flat(recipe),
        "digest": recipe_digest(recipe),
        "set": data.images.digest,
        "episodes": data.sampler.digest,
    }


def held_out_pixels(recipe: Recipe) -> str:
    """What becomes of the pixels of held-out classes."""
    data = recipe.data
    if data.labels == "base":
        return "background in masks and in supports' label maps, ignored in queries' label maps"
    if data.held_out == "background":
        return "background"
    where = "label maps" if data.labels == "ids" else "queries"
    return f"ignored in {where}, background elsewhere"


def summary(about: str, record: Mapping[str, Any]) -> str:
    """A few lines for who starts the run."""
    base, held_out = len(record["base_classes"]), len(record["held_out_classes"])
    lines = [
        about,
        f"effective batch {record['effective_batch']}: {record['batch']}; {record['steps']} steps, "
        f"{record['epochs']} passes",
        f"{record['images']} images of {base} classes, {held_out} classes held out; "
        f"{record['trained_parameters'] / 1e6:.2f} M parameters trained",
    ]
    if record["images_that_show_held_out_classes"]:
        lines.append(
            f"{record['images_that_show_held_out_classes']} of the images also show held-out "
            f"classes, whose pixels are {record['held_out_pixels']}"
        )
    if record["validation_images_that_are_learned_from"]:
        shared = record["validation_images_that_are_learned_from"]
        lines.append(f"{shared} images of the validation are learned from too")
    if record["resumed_at"]:
        lines.append(f"resumed after step {record['resumed_at']}")
    return "\n".join(lines)
