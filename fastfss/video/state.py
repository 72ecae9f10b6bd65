"""What was said so far, as a fold of the events that count."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from fastfss.annotation import UNSAID, Annotation
from fastfss.errors import expected
from fastfss.video.log import Event


@dataclass(frozen=True)
class Support:
    """What stays known of a frame or another image.

    Attributes:
        seq: the number of the event it came with, by which `forget` knows it.
        frame: of the video; None for an image from elsewhere.
        image: the name under which the session keeps that image.
        annotations: object -> what is said of it there; of a frame, the masks it had.
    """

    seq: int
    frame: int | None
    image: str | None
    annotations: Mapping[int, Annotation]


@dataclass(frozen=True)
class SessionState:
    """Objects, what was said of them, and supports.

    Attributes:
        objects: number -> name.
        annotations: (frame, object) -> what was said.
        supports: images from elsewhere and committed frames, in order.
    """

    objects: Mapping[int, str] = field(default_factory=dict)
    annotations: Mapping[tuple[int, int], Annotation] = field(default_factory=dict)
    supports: tuple[Support, ...] = ()

    @property
    def prompted(self) -> frozenset[int]:
        """The frames of which something is said."""
        return frozenset(frame for frame, _ in self.annotations)

    def said_of(self, frame: int) -> dict[int, Annotation]:
        """Object -> what is said of it in a frame."""
        return {o: a for (where, o), a in self.annotations.items() if where == frame}

    def elsewhere(self, frame: int, object: int) -> Annotation:
        """Where in a frame an object is not, because others are said to be there.

        Their points, strokes and masks; not their boxes, which hold more than them.
        """
        found = Annotation()
        for number, said in self.said_of(frame).items():
            for mark in said.marks if number != object else ():
                if mark.mask is not None:
                    found = found.area(torch.where(mark.mask == 1, 0, UNSAID))
                elif mark.positive and mark.kind != "box":
                    found = Annotation((*found.marks, replace(mark, positive=False)))
        return found

    def after(self, event: Event) -> SessionState:
        """The state after one more event.

        Raises:
            ValueError: an event without what its kind needs.
        """
        try:
            return self._after(event)
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            came = f"event {event.seq} without it ({error})"
            raise expected(event.kind, "all that its kind needs", came) from None

    def _after(self, event: Event) -> SessionState:
        data, number, frame = event.data, event.object, event.frame
        if event.kind == "object" and number is not None:
            return replace(self, objects={**self.objects, number: str(data["name"])})
        if event.kind == "remove":
            return self._without(number)
        if event.kind == "annotate" and frame is not None and number is not None:
            said = annotation_from(data["marks"])
            if not data.get("replace") and (before := self.annotations.get((frame, number))):
                said = Annotation((*before.marks, *said.marks))
            return replace(self, annotations={**self.annotations, (frame, number): said})
        if event.kind == "mask" and frame is not None:
            given = {(frame, int(o)): annotation_from(marks) for o, marks in data["masks"].items()}
            named = {int(o): str(name) for o, name in data.get("objects", {}).items()}
            known = {**self.objects, **named}
            return replace(self, objects=known, annotations={**self.annotations, **given})
        if event.kind == "clear":
            kept = {
                (where, o): said
                for (where, o), said in self.annotations.items()
                if where != frame or number not in (None, o)
            }
            return replace(self, annotations=kept)
        if event.kind in ("support", "commit"):
            said_of = {int(o): annotation_from(marks) for o, marks in data["masks"].items()}
            new = Support(event.seq, frame, data.get("image"), said_of)
            rest = tuple(s for s in self.supports if frame is None or s.frame != frame)
            return replace(self, supports=(*rest, new))
        if event.kind == "forget":
            rest = tuple(s for s in self.supports if s.seq != data["support"])
            return replace(self, supports=rest)
        return self

    def _without(self, number: int | None) -> SessionState:
        supports = []
        for support in self.supports:
            rest = {o: a for o, a in support.annotations.items() if o != number}
            if rest:
                supports.append(replace(support, annotations=rest))
        return SessionState(
            {o: name for o, name in self.objects.items() if o != number},
            {(f, o): said for (f, o), said in self.annotations.items() if o != number},
            tuple(supports),
        )


def fold(events: Iterable[Event]) -> SessionState:
    """The state that events lead to.

    Raises:
        ValueError: an event without what its kind needs.
    """
    state = SessionState()
    for event in events:
        state = state.after(event)
    return state


def marks_of(annotation: Annotation) -> list[Any]:
    """An annotation's marks, ready for JSON."""
    marks: list[Any] = json.loads(annotation.to_json())["marks"]
    return marks


def annotation_from(marks: Any) -> Annotation:
    """What `marks_of` gave; ValueError for anything else."""
    return Annotation.from_json(json.dumps({"format": "fastfss-annotation-1", "marks": marks}))
