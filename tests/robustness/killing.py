"""Kill a process while it writes: `python -m tests.robustness.killing FOLDER --kills 100`.

A child writes version after version of every kind of file; it is killed after a random time, and
all files that are there must be whole. The child is forked, so that a kill costs no start.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import torch

from fastfss import Task
from fastfss.data import read_label_map
from fastfss.engines import Manifest
from fastfss.protocols.episode_lists import FORMAT as EPISODES
from fastfss.reading import read_json
from fastfss.training.checkpoints import Checkpoints
from fastfss.weights import read_checkpoint
from tests.robustness.faults import SIDE, WRITERS
from tests.video.clips import session

LONGEST_SECONDS = 0.25


def _training(path: Path) -> None:
    newest = Checkpoints(path.parent, keep=2).newest()
    assert newest is not None
    state = torch.load(newest, weights_only=True)
    assert newest.stem.endswith(f"{state['step']:08d}") and state["model"].shape[-1] == SIDE


def _episodes(path: Path) -> None:
    plain = read_json(path, str(path))
    assert plain["format"] == EPISODES and len(plain["episodes"]) == 200


def _session(path: Path) -> None:
    one = session(4, workspace=path.parent)
    assert one.frames == (0, 1, 2, 3) and all(one.masks(frame).any() for frame in one.frames)


CHECKS: dict[str, Callable[[Path], object]] = {
    "task.safetensors": Task.load,
    "weights.safetensors": read_checkpoint,
    "checkpoints/step-00000001.pt": _training,
    "a_mask.png": read_label_map,
    "manifest.json": lambda path: Manifest.read(path.parent),
    "episodes.json": _episodes,
    "session/events.jsonl": _session,
    "masks.json": lambda path: read_json(path, str(path))["annotations"][0]["segmentation"],
}


def main() -> None:
    """Write, kill, read."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    rng = random.Random(chosen.seed)
    for name in CHECKS:
        (chosen.folder / name).parent.mkdir(parents=True, exist_ok=True)
        for version in (1, 2):
            WRITERS[name](chosen.folder / name, version)
    left = 0
    for kill in range(chosen.kills):
        # One kind of file each time, so that the kill falls into its writing.
        name = list(CHECKS)[kill % len(CHECKS)]
        child = os.fork()
        if child == 0:
            version = 0
            while True:
                version += 1
                WRITERS[name](chosen.folder / name, 3 + version % 2)
        time.sleep(rng.uniform(0.005, LONGEST_SECONDS))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), f"the writer of {name} ended by itself: {status}"
        CHECKS[name](chosen.folder / name)
        left += len(list(chosen.folder.rglob("*.fastfss-tmp")))
    print(f"{chosen.kills} killed, all files whole; {left} temporary files were left on the way")


if __name__ == "__main__":
    main()
