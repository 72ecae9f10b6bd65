"""Where a propagation is, so that going on from there gives what it would have given.

The masks of a frame say less than a propagation knows of it: how much of each position belongs to
which object. With that, one that was cut off and goes on segments as if it never had been.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastfss.atomic import atomic_path
from fastfss.errors import expected

_KEPT = 4


@dataclass(frozen=True, eq=False)
class Trail:
    """What a propagation remembers after a frame.

    Attributes:
        seq: of its event, and of the frame's masks.
        step: 1 forward, -1 backward.
        recent: of the frames near in time: number, objects, shares (A + 1, h, w); the last one is
            the frame itself.
        confident: number and state of the frames that became references.
    """

    seq: int
    step: int
    recent: tuple[tuple[int, tuple[int, ...], Tensor], ...]
    confident: tuple[tuple[int, int], ...]

    @property
    def frame(self) -> int:
        """The frame that was segmented last."""
        return self.recent[-1][0]


class Trails:
    """The trails of the last propagations."""

    def __init__(self, trails: Sequence[Trail] = ()) -> None:
        self._trails = {(one.seq, one.step): one for one in trails}

    def __iter__(self) -> Iterator[Trail]:
        return iter(self._trails.values())

    def leave(self, trail: Trail) -> None:
        """Note where a propagation is now."""
        self._trails.pop((trail.seq, trail.step), None)
        self._trails[trail.seq, trail.step] = trail
        while len(self._trails) > _KEPT:
            self._trails.pop(next(iter(self._trails)))

    def find(self, frame: int, seq: int, step: int | None = None) -> Trail | None:
        """The trail that ends with the masks of a frame in a state, in a direction or in any."""
        for found in self:
            if (found.frame, found.seq) == (frame, seq) and step in (None, found.step):
                return found
        return None


def write_trails(path: Path, trails: Trails) -> None:
    """Write them to a file, whole or not at all."""
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for n, trail in enumerate(trails):
        arrays[f"{n}.at"] = np.array([trail.seq, trail.step], np.int64)
        arrays[f"{n}.confident"] = np.array(trail.confident, np.int64).reshape(-1, 2)
        for m, (frame, objects, shares) in enumerate(trail.recent):
            arrays[f"{n}.{m}.objects"] = np.array([frame, *objects], np.int64)
            arrays[f"{n}.{m}.shares"] = shares.float().cpu().numpy()
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def read_trails(path: Path) -> Trails:
    """What `write_trails` wrote; none where there is no file.

    Raises:
        ValueError: a damaged file.
    """
    if not path.exists():
        return Trails()
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return Trails([_trail(arrays, n) for n in range(_count(arrays, "{}.at"))])
    except Exception as error:  # whatever a damaged archive comes to
        raise expected(f"workspace '{path}'", "what a session wrote", str(error)) from None


def _count(arrays: Mapping[str, Any], name: str) -> int:
    count = 0
    while name.format(count) in arrays:
        count += 1
    return count


def _trail(arrays: Mapping[str, Any], n: int) -> Trail:
    seq, step = (int(one) for one in arrays[f"{n}.at"])
    recent = []
    for m in range(_count(arrays, f"{n}.{{}}.objects")):
        frame, *objects = (int(one) for one in arrays[f"{n}.{m}.objects"])
        shares = torch.from_numpy(arrays[f"{n}.{m}.shares"])
        if shares.ndim != 3 or len(shares) != len(objects) + 1:
            raise ValueError(f"shares {tuple(shares.shape)} of {len(objects)} objects")
        recent.append((frame, tuple(objects), shares))
    confident = tuple((int(a), int(b)) for a, b in arrays[f"{n}.confident"])
    return Trail(seq, step, tuple(recent), confident)
