"""What was done in a session, in order: events are only ever added, and undo is one of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from fastfss.errors import expected

EventKind = Literal[
    "object",  # a new object, or another name for one
    "remove",  # an object goes, with all that was said of it
    "annotate",  # the annotation of an object in a frame
    "mask",  # a mask of several objects in a frame
    "clear",  # all that was said of a frame
    "support",  # an image from elsewhere, with annotations
    "commit",  # a frame with its masks becomes a support
    "forget",  # a support or a committed frame goes
    "propagate",  # masks of a range of frames are computed
    "stop",  # that ended, after so many frames; changes nothing
    "undo",
    "redo",
]


@dataclass(frozen=True)
class Event:
    """One thing that was done.

    Attributes:
        seq: its number, from 1 without gaps.
        kind: what.
        parent: the state it was done in: the number of the last event that counted, 0 for none.
        frame, object: where, and to what, if to one.
        data: what else there is to say, ready for JSON.
    """

    seq: int
    kind: EventKind
    parent: int
    frame: int | None = None
    object: int | None = None
    data: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON; what is not said is left out."""
        plain = {"seq": self.seq, "kind": self.kind, "parent": self.parent}
        plain |= {} if self.frame is None else {"frame": self.frame}
        plain |= {} if self.object is None else {"object": self.object}
        return {**plain, **({"data": dict(self.data)} if self.data else {})}

    @staticmethod
    def from_dict(plain: Any) -> Event:
        """What `to_dict` gave; ValueError for anything else."""
        try:
            if plain["kind"] not in get_args(EventKind):
                raise ValueError(f"kind {plain['kind']!r}")
            frame, number, data = plain.get("frame"), plain.get("object"), plain.get("data", {})
            if plain["kind"] == "stop":
                int(data["of"]), int(data["done"])
            return Event(
                int(plain["seq"]),
                plain["kind"],
                int(plain["parent"]),
                None if frame is None else int(frame),
                None if number is None else int(number),
                dict(data),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise expected("event", "an event of a session", str(error)) from None


class EventLog:
    """An append-only list of events and the state they lead to.

    The events that count form a path: each has the one before it as its parent. Its last number is
    the `head`; undo moves the head to its parent, redo back, and a new event after an undo begins
    another branch. A head names a state for good: whatever was computed at a head is right again
    whenever the head comes back to it.
    """

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._path: list[int] = []  # numbers of the events that count, in order
        self._on_path: set[int] = set()
        self._redo: list[int] = []  # what undo took, the next to come back last
        self._redo_before: list[int] = []  # the same before the last event

    @property
    def events(self) -> Sequence[Event]:
        """All events, undo and redo among them."""
        return tuple(self._events)

    def __len__(self) -> int:
        return len(self._events)

    @property
    def head(self) -> int:
        """The number of the last event that counts; 0 at the beginning."""
        return self._path[-1] if self._path else 0

    @property
    def can_undo(self) -> bool:
        """Whether there is an event to take back."""
        return bool(self._path)

    @property
    def can_redo(self) -> bool:
        """Whether there is one to bring back."""
        return bool(self._redo)

    def counted(self) -> Iterator[Event]:
        """The events that count, in order."""
        return (self._events[seq - 1] for seq in self._path)

    def counts(self, seq: int) -> bool:
        """Whether the state was reached through this event (0: the beginning, always)."""
        return seq == 0 or seq in self._on_path

    def reachable(self, seq: int) -> bool:
        """Whether the event counts, or redo could bring it back."""
        return self.counts(seq) or seq in self._redo

    def event(self, seq: int) -> Event:
        """An event by its number."""
        return self._events[seq - 1]

    def done(self, seq: int) -> int | None:
        """After how many frames the propagation of event `seq` ended; None if it goes on."""
        stops = (e.data for e in self._events[seq:] if e.kind == "stop")
        return next((int(data["done"]) for data in stops if data["of"] == seq), None)

    def path_to(self, seq: int) -> list[Event]:
        """The events that lead to a state, in order."""
        path = []
        while seq:
            path.append(self._events[seq - 1])
            seq = path[-1].parent
        return path[::-1]

    def next(
        self,
        kind: EventKind,
        *,
        frame: int | None = None,
        object: int | None = None,
        data: Mapping[str, Any] | None = None,
    ) -> Event:
        """The event that `append` would add."""
        return Event(len(self._events) + 1, kind, self.head, frame, object, data or {})

    def append(self, event: Event) -> None:
        """Do something; what undo took can no longer come back.

        Raises:
            ValueError: it is not the next event.
        """
        wanted = f"event {len(self._events) + 1} after {self.head}"
        if (event.seq, event.parent) != (len(self._events) + 1, self.head):
            raise expected("event", wanted, f"event {event.seq} after {event.parent}")
        self._add(event)

    def withdraw(self) -> None:
        """Take the event that was appended last out again, as if it had never been there."""
        seq = self._path.pop()
        assert seq == len(self._events)
        self._on_path.discard(seq)
        self._events.pop()
        self._redo = self._redo_before

    def stop(self, seq: int, done: int) -> Event:
        """Note that the propagation of event `seq` ended after so many frames."""
        event = Event(len(self._events) + 1, "stop", self.head, data={"of": seq, "done": done})
        self._add(event)
        return event

    def undo(self) -> Event:
        """Take the last event that counts back; that event.

        Raises:
            ValueError: there is none.
        """
        if not self._path:
            raise expected("undo", "a change to take back", "none")
        taken = self._events[self._path[-1] - 1]
        self._add(Event(len(self._events) + 1, "undo", taken.seq))
        return taken

    def redo(self) -> Event:
        """Bring the event that undo took last back; that event.

        Raises:
            ValueError: there is none.
        """
        if not self._redo:
            raise expected("redo", "a change that was taken back", "none")
        brought = self._events[self._redo[-1] - 1]
        self._add(Event(len(self._events) + 1, "redo", self.head))
        return brought

    def to_lines(self, first: int = 1) -> Iterator[str]:
        """A line of JSON an event, from number `first` on."""
        for event in self._events[first - 1 :]:
            yield json.dumps(event.to_dict(), separators=(",", ":"))

    @staticmethod
    def from_lines(lines: Sequence[str]) -> EventLog:
        """The log of its lines; a last line that was cut off is left out.

        Raises:
            ValueError: a line of something else, or out of order; its number is named.
        """
        log = EventLog()
        for number, line in enumerate(lines, start=1):
            try:
                event = Event.from_dict(json.loads(line))
            except (ValueError, RecursionError) as error:
                if number == len(lines) and isinstance(error, json.JSONDecodeError):
                    break
                raise ValueError(f"line {number} of the log: {error}") from None
            if event.seq != number or event.parent != log.head:
                came = f"event {event.seq} after {event.parent}"
                wanted = f"event {number} after {log.head}"
                raise expected(f"line {number} of the log", wanted, came)
            log._add(event)
        return log

    def _add(self, event: Event) -> None:
        if event.kind == "undo":
            if not self._path:
                raise expected("undo", "a change to take back", "none")
            self._on_path.discard(self._path[-1])
            self._redo.append(self._path.pop())
        elif event.kind == "redo":
            if not self._redo:
                raise expected("redo", "a change that was taken back", "none")
            self._on_path.add(self._redo[-1])
            self._path.append(self._redo.pop())
        elif event.kind == "stop":
            pass
        else:
            self._redo_before, self._redo = self._redo, []
            self._path.append(event.seq)
            self._on_path.add(event.seq)
        self._events.append(event)
