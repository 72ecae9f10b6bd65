"""Carrying masks on from frame to frame."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from operator import eq
from threading import Event as Flag
from threading import RLock
from typing import TYPE_CHECKING

import torch

from fastfss.video.log import Event
from fastfss.video.memory import Memory, nearest
from fastfss.video.results import FrameResult
from fastfss.video.tracking import Known

if TYPE_CHECKING:
    from fastfss.video.history import History


@dataclass(frozen=True)
class Run:
    """Frames one after another.

    Attributes:
        seed: the frame before the first, of which the masks are known; None for none.
        frames: those to segment.
    """

    seed: int | None
    frames: range


def runs_of(event: Event, has_masks: Callable[[int], bool]) -> list[Run]:
    """What the event of a propagation says to segment, in order."""
    start, data = event.frame, event.data
    assert start is not None
    first, last = int(data["first"]), int(data["last"])
    runs = []
    if data.get("anew") or not has_masks(start):
        before = start - 1 if start and has_masks(start - 1) else None
        runs.append(Run(before, range(start, start + 1)))
    if data["direction"] in ("forward", "both"):
        runs.append(Run(start, range(start + 1, last + 1)))
    if data["direction"] in ("backward", "both"):
        runs.append(Run(start, range(start - 1, first - 1, -1)))
    return [run for run in runs if run.frames]


class Propagation(Iterator[FrameResult]):
    """The results of a propagation, each segmented when it is asked for.

    Attributes:
        seq: the number of its event.
        total: how many frames there are.
        done: how many of them are segmented.

    Args:
        history: where it belongs.
        event: of it.
        cancel: looked at before each frame.
        lock: held while a frame is segmented.
        limit: of frames, where the event is done again.
    """

    def __init__(
        self,
        history: History,
        event: Event,
        cancel: Flag | Callable[[], bool] | None,
        lock: RLock,
        limit: int | None = None,
    ) -> None:
        self.seq = event.seq
        self.done = 0
        self._history = history
        self._cancel = cancel.is_set if isinstance(cancel, Flag) else cancel
        self._lock = lock
        self._limit = limit
        self._continues = event.data.get("continues")
        runs = runs_of(event, lambda frame: history.newest(frame, event.seq) is not None)
        self.total = sum(len(run.frames) for run in runs)
        self._steps: Generator[FrameResult, None, None] = self._results(runs)

    def __next__(self) -> FrameResult:
        return next(self._steps)

    def close(self) -> None:
        """End it where it is."""
        self._steps.close()
        with self._lock:
            self._history.stopped(self.seq, self.done)

    def _ended(self) -> bool:
        if self._history.log.head != self.seq and self._limit is None:
            return True
        return self.done == self._limit or (self._cancel is not None and self._cancel())

    def _near(self, known: list[Known], frame: int) -> list[Known]:
        """Of what is known, what counts for a frame: supports, and the nearest annotated frames."""
        frames = [one.image for one in known if isinstance(one.image, int) and one.annotated]
        few = nearest(frames, frame, self._history.memory.annotated)
        return [one for one in known if not one.annotated or one.image in few]

    def _memory(self, run: Run) -> Memory:
        """What is remembered when a run begins: all that there was where it goes on from one."""
        history = self._history
        memory = Memory(history.memory)
        seed = None if run.seed is None else history.newest(run.seed, self.seq + 1)
        if seed is None:
            return memory
        trail = None
        if self._continues == seed.seq:
            trail = history.trails.find(seed.frame, seed.seq, run.frames.step)
        if trail is None:
            memory.see(history.tracker.seen(seed.frame, seed.labels, seed.objects))
            return memory
        found = [history.results.get(n, partial(eq, state)) for n, state in trail.confident]
        history.tracker.remember(trail, [one for one in found if one is not None], memory)
        return memory

    def _results(self, runs: list[Run]) -> Generator[FrameResult, None, None]:
        history, tracker = self._history, self._history.tracker
        # A second thread encodes the next frame while this one matches.
        worker = ThreadPoolExecutor(1) if torch.get_num_threads() > 1 else None
        try:
            with self._lock:
                known = history.known(self.seq)
                fixed = {one.image: one.masks for one in known if one.annotated}
                references = dict(zip(known, tracker.references(known), strict=True))
            for run in runs:
                with self._lock:
                    memory = self._memory(run)
                for frame, ahead in zip(run.frames, [*run.frames[1:], None], strict=True):
                    with self._lock:
                        if self._ended():
                            return
                        if worker is not None and ahead is not None:
                            tracker.features(frame)
                            tracker.prepare(ahead, worker)
                        objects = tuple(sorted(history.state_at(self.seq).objects))
                        masks = fixed.get(frame, {})
                        few = [references[one] for one in self._near(known, frame)]
                        result = history.put(
                            tracker.follow(frame, few, memory, objects, masks, self.seq)
                        )
                        history.trails.leave(memory.trail(self.seq, run.frames.step))
                        self.done += 1
                    yield result
        finally:
            if worker is not None:
                worker.shutdown()
            with self._lock:
                history.stopped(self.seq, self.done)
