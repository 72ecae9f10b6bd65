"""The masks of frames, as run lengths, each with the state it was computed from."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from fastfss.errors import expected
from fastfss.video.rle import coco_rle, decode_labels, encode_labels

Labels = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class FrameResult:
    """The masks of a frame.

    Attributes:
        frame: its number.
        seq: the state that it was computed from: it holds where it equals `VideoSession.seq`, and
            is the newest there is where not.
        size: height and width.
        runs: the label map of `fastfss.video.rle.encode_labels`.
        objects: numbers of the objects that were looked for.
        confidence: object -> mean probability inside of its mask; 0 where it is nowhere.
        seconds: stage -> how long it took.
    """

    frame: int
    seq: int
    size: tuple[int, int]
    runs: bytes
    objects: tuple[int, ...]
    confidence: dict[int, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @cached_property
    def labels(self) -> Labels:
        """(H, W): 0 background, n the object n."""
        found = decode_labels(self.runs, self.size)
        found.setflags(write=False)
        return found

    def mask(self, object: int) -> npt.NDArray[np.bool_]:
        """(H, W): where one object is; ValueError for an object that was not looked for."""
        if object not in self.objects:
            raise expected("object", f"one of {', '.join(map(str, self.objects))}", str(object))
        where: npt.NDArray[np.bool_] = self.labels == object
        return where

    def rle(self, object: int) -> dict[str, Any]:
        """COCO's run lengths of one object."""
        return coco_rle(self.mask(object))

    @property
    def visible(self) -> tuple[int, ...]:
        """The objects that are somewhere in the frame."""
        counts = np.bincount(self.labels.reshape(-1))
        return tuple(int(n) for n in np.flatnonzero(counts) if n)


@dataclass(frozen=True)
class _Version:
    seq: int
    packed: bytes
    objects: tuple[int, ...]
    confidence: dict[int, float]


class Results:
    """For each frame the masks of all states that undo and redo can come to.

    Args:
        size: height and width of the frames.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size
        self._versions: dict[int, list[_Version]] = {}

    def put(self, result: FrameResult) -> None:
        """Keep a result; it replaces one of the same frame and state."""
        packed = zlib.compress(result.runs, 1)
        new = _Version(result.seq, packed, result.objects, result.confidence)
        rest = [one for one in self._versions.get(result.frame, []) if one.seq != result.seq]
        self._versions[result.frame] = sorted([*rest, new], key=lambda one: one.seq)

    def get(self, frame: int, counts: Callable[[int], bool]) -> FrameResult | None:
        """The newest result of a frame of which the state still counts; None if there is none."""
        for one in reversed(self._versions.get(frame, [])):
            if counts(one.seq):
                runs = zlib.decompress(one.packed)
                return FrameResult(frame, one.seq, self.size, runs, one.objects, one.confidence)
        return None

    def seq(self, frame: int, counts: Callable[[int], bool]) -> int | None:
        """The state of `get`, without unpacking."""
        for one in reversed(self._versions.get(frame, [])):
            if counts(one.seq):
                return one.seq
        return None

    def sightings(self, counts: Callable[[int], bool]) -> Iterator[tuple[int, tuple[int, ...]]]:
        """Frame -> the objects that are somewhere in it, in order; without unpacking."""
        for frame, versions in sorted(self._versions.items()):
            newest = next((one for one in reversed(versions) if counts(one.seq)), None)
            if newest is not None:
                yield frame, tuple(n for n in newest.objects if newest.confidence.get(n, 0) > 0)

    def prune(self, reachable: Callable[[int], bool]) -> None:
        """Drop what no undo or redo can come back to."""
        for frame in list(self._versions):
            kept = [one for one in self._versions[frame] if reachable(one.seq)]
            if kept:
                self._versions[frame] = kept
            else:
                del self._versions[frame]

    @property
    def frames(self) -> tuple[int, ...]:
        """The frames that have results, in order."""
        return tuple(sorted(self._versions))

    def count_of(self, seq: int) -> int:
        """How many frames have masks of a state."""
        return sum(any(one.seq == seq for one in rows) for rows in self._versions.values())

    @property
    def nbytes(self) -> int:
        """Bytes of all results, packed."""
        return sum(len(one.packed) for versions in self._versions.values() for one in versions)

    def rows(self) -> Iterator[tuple[int, int, bytes, tuple[int, ...], dict[int, float]]]:
        """All versions, for a file: frame, state, packed runs, objects, confidence."""
        for frame, versions in sorted(self._versions.items()):
            for one in versions:
                yield frame, one.seq, one.packed, one.objects, one.confidence

    def add_row(
        self,
        frame: int,
        seq: int,
        packed: bytes,
        objects: tuple[int, ...],
        confidence: dict[int, float],
    ) -> None:
        """One of `rows`, read from a file."""
        runs = zlib.decompress(packed)
        decode_labels(runs, self.size)  # so that a damaged file shows now
        self.put(FrameResult(frame, seq, self.size, runs, objects, confidence))


def result_of(
    frame: int,
    seq: int,
    labels: Labels,
    objects: tuple[int, ...],
    confidence: dict[int, float],
    seconds: dict[str, float],
) -> FrameResult:
    """A result of its label map."""
    size = (labels.shape[0], labels.shape[1])
    return FrameResult(frame, seq, size, encode_labels(labels), objects, confidence, seconds)
