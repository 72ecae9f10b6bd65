"""Disks that are full, files that cannot be read, and everything that fastfss writes."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastfss import Result, Task
from fastfss.engines import manifest as engine
from fastfss.protocols.episode_lists import EpisodeList, ListedEpisode
from fastfss.training.checkpoints import Checkpoints
from fastfss.video import VideoSession
from fastfss.weights import save_checkpoint
from tests.robustness.targets import TARGETS
from tests.video.clips import clip, session

# Of one version of a file; the limits below are parts of it.
SIDE = 96


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Every file that grows beyond so many bytes meets an error, as on a disk without room."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _tensor(version: int) -> torch.Tensor:
    return torch.rand(1, 2, SIDE, SIDE, generator=torch.Generator().manual_seed(version))


def _task(path: Path, version: int) -> None:
    Task("ssp", {"prototypes": _tensor(version)}, f"v{version}").save(path)


def _training(path: Path, version: int) -> None:
    # Two kept: the one before is the earlier output.
    Checkpoints(path.parent, keep=2).save(version, {"step": version, "model": _tensor(version)})


def _mask(path: Path, version: int) -> None:
    labels = np.random.default_rng(version).integers(0, 4, (SIDE, SIDE), dtype=np.uint8)
    probabilities = torch.zeros(3, SIDE, SIDE)
    Result.from_probabilities(
        probabilities, torch.from_numpy(labels).long(), names=["a", "b", "c"]
    ).save_mask(path)


def _manifest(path: Path, version: int) -> None:
    if not path.exists():
        TARGETS["manifest"].make(path.parent)
    found = engine.Manifest.read(path.parent)
    versions = {f"part {n}": f"{version}" for n in range(40)}
    engine.Manifest(**{**vars(found), "versions": versions}).write(path.parent)


def _episodes(path: Path, version: int) -> None:
    listed = tuple(ListedEpisode((1,), ((3, n),), version, 0) for n in range(200))
    EpisodeList("folder", "digest", (1,), listed).save(path)


@cache
def _sessions(version: int) -> VideoSession:
    made = session(4)
    made.add_labels(0, clip(4)[1][0])
    for turn in range(version):
        made.add_object(f"object {turn} of {version}")
    list(made.propagate(0, last=3))
    return made


def _video(path: Path, version: int) -> None:
    """A session that goes on where it was saved."""
    one = session(4, workspace=path.parent)
    if not one.frames:
        one.add_labels(0, clip(4)[1][0])
        list(one.propagate(0, last=3))
    one.add_labels(version % 4, clip(4)[1][version % 4])
    one.add_object()
    one.save(path.parent)


def _exported(kind: Any) -> Callable[[Path, int], None]:
    return lambda path, version: void(_sessions(version).export(path, kind))


def void(_: object) -> None:
    """Only that it was written counts."""


# File -> how a version of it is written.
WRITERS: dict[str, Callable[[Path, int], None]] = {
    "task.safetensors": _task,
    "weights.safetensors": lambda path, version: save_checkpoint(path, {"w": _tensor(version)}),
    "checkpoints/step-00000001.pt": _training,
    "a_mask.png": _mask,
    "manifest.json": _manifest,
    "episodes.json": _episodes,
    "session/events.jsonl": _video,
    "masks.json": _exported("coco"),
    "masks.xml": _exported("cvat"),
    "masks.csv": _exported("csv"),
    "overlay.mp4": _exported("overlay"),
}
