"""The objects of a session and the log of all that is said: undo, redo, a saved session."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from threading import RLock
from typing import Any

import numpy as np
from torch import Tensor

from fastfss.errors import expected, expected_kind
from fastfss.video.history import History
from fastfss.video.limits import Limits
from fastfss.video.log import Event, EventKind, EventLog
from fastfss.video.memory import Memory, MemoryConfig
from fastfss.video.propagating import Propagation
from fastfss.video.results import Results
from fastfss.video.source import FrameSource, LiveSource
from fastfss.video.state import SessionState
from fastfss.video.tracking import Tracker
from fastfss.video.trail import Trails


class LoggedSession:
    """Objects in a video, and a log of changes that only grows.

    Args:
        source: of the frames.
        tracker: computes masks.
        memory: how much is remembered.
        limits: what is refused.
    """

    def __init__(
        self, source: FrameSource, tracker: Tracker, memory: MemoryConfig, limits: Limits
    ) -> None:
        self.source = source
        self.tracker = tracker
        self.limits = limits
        self.at = History(tracker, memory)
        self._live = Memory(memory)
        self._lock = RLock()

    # ---- What there is

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the frames."""
        return self.source.size

    @property
    def count(self) -> int:
        """The number of frames; of a live source, those that came so far."""
        count = self.source.next if isinstance(self.source, LiveSource) else self.source.count
        assert count is not None
        return count

    @property
    def seq(self) -> int:
        """The number of the current state: of the last event that counts."""
        return self.at.log.head

    @property
    def state(self) -> SessionState:
        """Objects, annotations and supports."""
        return self.at.state

    @property
    def objects(self) -> Mapping[int, str]:
        """Number -> name."""
        return self.state.objects

    @property
    def history(self) -> Sequence[Event]:
        """All events, undo and redo among them."""
        return self.at.log.events

    # ---- Objects

    def add_object(self, name: str | None = None, number: int | None = None) -> int:
        """A new object; its number, which no other object ever has again.

        Args:
            name: what to call it; "object N" by default.
            number: 1 to 254; the next free one by default.

        Raises:
            ValueError: a number that was used, or too many objects.
        """
        with self._lock:
            used = self._used_numbers()
            number = max(used, default=0) + 1 if number is None else number
            if number in used or not 1 <= number <= self.limits.objects:
                wanted = f"1 to {self.limits.objects}, not used before"
                raise expected("number", wanted, str(number))
            self._append("object", object=number, data={"name": name or f"object {number}"})
            return number

    def rename_object(self, object: int, name: str) -> None:
        """Call an object something else; ValueError if there is none of the number."""
        with self._lock:
            self._append("object", object=self._object(object), data={"name": name})

    def remove_object(self, object: int) -> None:
        """Forget an object and all that was said of it; ValueError if there is none."""
        with self._lock:
            self._append("remove", object=self._object(object))

    # ---- History

    @property
    def can_undo(self) -> bool:
        """Whether there is a change to take back."""
        return self.at.log.can_undo

    @property
    def can_redo(self) -> bool:
        """Whether there is a change that was taken back."""
        return self.at.log.can_redo

    def undo(self) -> Event:
        """Take the last change back; that event. ValueError if there is none."""
        with self._lock:
            event = self.at.log.undo()
            self._moved()
            return event

    def redo(self) -> Event:
        """Bring the change that undo took last back; that event. ValueError if there is none."""
        with self._lock:
            event = self.at.log.redo()
            self._moved()
            return event

    def rebuild(self) -> None:
        """Compute all masks anew, from the events that count alone."""
        with self._lock:
            log = self.at.log
            self.at.results = Results(self.size)
            for event in list(log.counted()):
                self.at.derive(event)
                if event.kind == "propagate":
                    again = Propagation(self.at, event, None, self._lock, log.done(event.seq))
                    for _ in again:
                        pass

    def restore(
        self, log: EventLog, results: Results, trails: Trails, images: Mapping[str, Tensor]
    ) -> None:
        """Take over the events, masks, trails and images of a workspace.

        A propagation that was cut off ends with the masks that are there.
        """
        with self._lock:
            for event in log.events:
                if event.kind == "propagate" and log.done(event.seq) is None:
                    log.stop(event.seq, results.count_of(event.seq))
            self.tracker.images.update(images)
            self.at.restore(log, results, trails)
            self._moved()

    # ---- How

    def _append(
        self,
        kind: EventKind,
        *,
        frame: int | None = None,
        object: int | None = None,
        data: Mapping[str, Any] | None = None,
    ) -> Event:
        event = self.at.append(kind, frame=frame, object=object, data=data)
        self._moved()
        return event

    def _moved(self) -> None:
        """Another state pins other frames."""
        state = self.state
        held = {one.frame for one in state.supports if one.frame is not None} | state.prompted
        others = {one.image for one in state.supports if one.image is not None}
        self.tracker.cache.pin({*held, *others})
        if isinstance(self.source, LiveSource):
            self.source.hold(set(held))
        self._live.leave()

    def _object(self, number: object) -> int:
        if isinstance(number, bool) or not isinstance(number, int | np.integer):
            raise expected_kind("object", "the number of an object", repr(number))
        if number not in self.objects:
            have = ", ".join(map(str, sorted(self.objects))) or "none; add_object makes one"
            raise expected("object", f"one of {have}", str(number))
        return int(number)

    def _used_numbers(self) -> set[int]:
        used = {e.object for e in self.history if e.kind == "object" and e.object is not None}
        named = (e.data.get("objects", {}) for e in self.history if e.kind == "mask")
        return used | {int(number) for names in named for number in names}
