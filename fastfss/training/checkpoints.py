"""Checkpoints from which a killed run goes on, bit for bit on a CPU."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastfss.atomic import atomic_path, remove_temporaries
from fastfss.errors import CheckpointError, expected
from fastfss.training.recipe import Recipe
from fastfss.training.recipe_files import deciding, differences, recipe_digest

FORMAT = "fastfss-training-1"
_NAME = "step-{:08d}.pt"


class Checkpoints:
    """The checkpoints of a run, in a folder of their own.

    Args:
        folder: made if need be.
        keep: how many of the newest stay.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def paths(self) -> list[Path]:
        """All of them, oldest first."""
        return sorted(self.folder.glob(_NAME.replace("{:08d}", "*")))

    def newest(self) -> Path | None:
        """The newest, if there is one."""
        return next(reversed(self.paths()), None)

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write one, and then remove those that are too old; the newest is always whole."""
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_temporaries(self.folder)  # of a process that was killed while it wrote
        path = self.folder / _NAME.format(step)
        write_torch_file(path, state)
        for old in self.paths()[: -self.keep]:
            old.unlink()
        return path


def write_torch_file(path: Path, value: object) -> None:
    """Write a file of `torch.save` that is either whole or not there.

    Raises:
        OSError: it cannot be written.
    """
    # A file of Python's: where torch opens it, a full disk is a RuntimeError without its reason.
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save(value, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def read_training_state(path: Path, recipe: Recipe, episodes: str) -> dict[str, Any]:
    """Read a checkpoint of this recipe.

    Args:
        path: the file.
        recipe: of the run that goes on.
        episodes: the digest of the run's sampler.

    Raises:
        CheckpointError: no such file, one that cannot be read, or one of something else.
        ValueError: one of another recipe, or of other data; the difference is named.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    # Damaged bytes raise whatever the unpickler stumbles over: RuntimeError, EOFError, KeyError.
    except Exception as error:
        raise CheckpointError(f"{path}: cannot be read as a checkpoint ({error})") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path}: expected a checkpoint of a training, got another file")
    sampler, settings = state.get("sampler"), state.get("recipe")
    if not isinstance(sampler, dict) or not isinstance(settings, dict):
        raise CheckpointError(f"{path}: damaged, without its sampler or recipe")
    if state.get("digest") != recipe_digest(recipe):
        changed = "; ".join(differences(deciding(recipe), settings))
        raise expected("recipe", f"that of {path}", f"another ({changed})")
    if sampler.get("digest") != episodes:
        came = "others (a class's images are not those of the checkpoint)"
        raise expected("data", f"the images of {path}", came)
    return state


def random_state(device: torch.device) -> dict[str, Any]:
    """The state of Python's, NumPy's and torch's global generators, in this process."""
    version, numbers, gauss = random.getstate()
    name, keys, *rest = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": [version, list(numbers), gauss],
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Put all generators back; those of a GPU only where they were kept and there is one."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def seed_everything(*parts: int) -> None:
    """Seed Python, NumPy and torch from several numbers."""
    sequence: Sequence[int] = np.random.SeedSequence(parts).generate_state(2).tolist()
    random.seed(sequence[0])
    np.random.seed(sequence[0])
    torch.manual_seed(sequence[1])
