"""The events of a session and the masks that follow from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastfss.annotation import Annotation, annotation_mask
from fastfss.video.log import Event, EventKind, EventLog
from fastfss.video.memory import MemoryConfig, nearest
from fastfss.video.results import FrameResult, Labels, Results, result_of
from fastfss.video.state import SessionState, annotation_from
from fastfss.video.tracking import Known, Tracker
from fastfss.video.trail import Trails

_STATES = 128  # that are kept; others are folded again


class History:
    """A log of events, the state each leads to, and the masks of frames in each.

    Args:
        tracker: computes masks.
        memory: of propagations.
    """

    def __init__(self, tracker: Tracker, memory: MemoryConfig) -> None:
        self.tracker = tracker
        self.memory = memory
        self.log = EventLog()
        self.results = Results(tracker.source.size)
        self.trails = Trails()
        self._states: dict[int, SessionState] = {0: SessionState()}

    # ---- Events

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the frames."""
        return self.tracker.source.size

    @property
    def state(self) -> SessionState:
        """The current state."""
        return self.state_at(self.log.head)

    def state_at(self, seq: int) -> SessionState:
        """The state that an event led to."""
        found = self._states.get(seq)
        if found is None:
            found = SessionState()
            for event in self.log.path_to(seq):
                found = found.after(event)
            self._keep_state(seq, found)
        return found

    def append(
        self,
        kind: EventKind,
        *,
        frame: int | None = None,
        object: int | None = None,
        data: Mapping[str, Any] | None = None,
    ) -> Event:
        """Append an event and compute the masks of its frame; on an error nothing has changed.

        A propagation's frames are computed by `Propagation`.
        """
        forked = self.log.can_redo
        event = self.log.next(kind, frame=frame, object=object, data=data)
        state = self.state.after(event)
        self.log.append(event)
        self._keep_state(event.seq, state)
        try:
            self.derive(event)
        except BaseException:
            self.log.withdraw()
            del self._states[event.seq]
            raise
        if forked:
            self.results.prune(self.log.reachable)
        return event

    def restore(self, log: EventLog, results: Results, trails: Trails) -> None:
        """Take over what was saved."""
        self.log, self.results, self.trails = log, results, trails
        self._states = {0: SessionState()}

    def stopped(self, seq: int, done: int) -> None:
        """Note that a propagation ended, unless that is known."""
        if self.log.done(seq) is None:
            self.log.stop(seq, done)

    # ---- Masks

    def put(self, result: FrameResult) -> FrameResult:
        """Keep a result."""
        self.results.put(result)
        return result

    def newest(self, frame: int, before: int | None = None) -> FrameResult | None:
        """The newest masks of a frame in the current state, or in that before an event."""
        counts = self.log.counts
        seq = self.log.head
        if before is not None:
            seq = before - 1
            found = self.results.get(frame, lambda one: one < before and counts(one))
        else:
            found = self.results.get(frame, counts)
        return None if found is None else self._without_removed(found, seq)

    def known(self, seq: int, *, near: int | None = None) -> list[Known]:
        """The images of which masks are known in a state: supports, then annotated frames.

        Args:
            seq: the state.
            near: a frame: only as many annotated frames as the memory holds, the nearest to it.
        """
        state = self.state_at(seq)
        known = []
        for one in state.supports:
            image = one.frame if one.image is None else one.image
            assert image is not None
            masks = {n: self._support_mask(image, a) for n, a in one.annotations.items()}
            known.append(Known(("support", one.seq, tuple(masks)), image, masks))
        frames = sorted(state.prompted)
        if near is not None:
            frames = nearest(frames, near, self.memory.annotated)
        for frame in frames:
            result = self.newest(frame, seq + 1)
            said = tuple(n for n in state.said_of(frame) if result and n in result.objects)
            if result is None or not said:
                continue
            masks = {n: torch.from_numpy(result.mask(n).astype(np.uint8)) for n in said}
            known.append(Known(("frame", frame, result.seq, said), frame, masks))
        return known

    def derive(self, event: Event) -> None:
        """Compute the masks that follow from an event in its own frame."""
        if event.kind == "annotate":
            self._answer(event)
        elif event.kind == "mask":
            self._take_masks(event)
        elif event.kind == "clear":
            self._clear(event)

    def _answer(self, event: Event) -> None:
        frame, number = event.frame, event.object
        assert frame is not None and number is not None
        before = self.newest(frame, event.seq)
        labels, objects, confidence = self._parts(before)
        base = self._before_marks(frame, event.seq)
        prior = None if base is None or number not in base.objects else base.mask(number)
        last = None if before is None or number not in before.objects else before.mask(number)
        if last is not None and (event.data.get("replace") or not last.any()):
            last = None
        others = []
        if prior is None:
            known = self.known(event.parent, near=frame)
            known = [one for one in known if one.image != frame and number in one.masks]
            # Of annotated frames the nearest alone: a click is to answer at once.
            frames = [one.image for one in known if one.annotated and isinstance(one.image, int)]
            close = nearest(frames, frame, 1)
            others = [one for one in known if not one.annotated or one.image in close]
        seconds: dict[str, float] = {}
        state = self.state_at(event.seq)
        mask, sure = self.tracker.answer(
            frame,
            number,
            state.annotations[frame, number],
            state.elsewhere(frame, number),
            None if prior is None or not prior.any() else prior,
            last,
            self.tracker.references(others),
            seconds,
        )
        labels[labels == number] = 0
        labels[mask.numpy()] = number
        self._put_parts(event, labels, {*objects, number}, {**confidence, number: sure}, seconds)

    def _before_marks(self, frame: int, before: int) -> FrameResult | None:
        """The newest masks of a frame that no mark made."""
        log = self.log

        def made_otherwise(seq: int) -> bool:
            if not (seq < before and log.counts(seq)):
                return False
            return seq == 0 or log.event(seq).kind != "annotate" or log.event(seq).frame != frame

        return self.results.get(frame, made_otherwise)

    def _take_masks(self, event: Event) -> None:
        assert event.frame is not None
        labels, objects, confidence = self._parts(self.newest(event.frame, event.seq))
        for name, marks in event.data["masks"].items():
            number = int(name)
            mask = annotation_from(marks).rasterize(self.size).numpy()
            labels[(labels == number) & (mask == 0)] = 0
            labels[mask == 1] = number
            objects.add(number)
        confidence |= {int(n): 1.0 for n in event.data["masks"]}
        self._put_parts(event, labels, objects, confidence, {})

    def _clear(self, event: Event) -> None:
        frame = event.frame
        assert frame is not None
        before = self.newest(frame, event.seq)
        if before is None:
            return
        followed = self.results.get(frame, lambda seq: seq != event.seq and self._follows(seq))
        labels, objects, confidence = self._parts(before)
        for number in (n for n in before.objects if event.object in (None, n)):
            labels[labels == number] = 0
            confidence[number] = 0.0
            if followed is not None and number in followed.objects:
                labels[(followed.labels == number) & (labels == 0)] = number
                confidence[number] = followed.confidence[number]
        self._put_parts(event, labels, objects, confidence, {})

    def _follows(self, seq: int) -> bool:
        return self.log.counts(seq) and self.log.event(seq).kind == "propagate"

    def _parts(self, result: FrameResult | None) -> tuple[Labels, set[int], dict[int, float]]:
        if result is None:
            return np.zeros(self.size, np.uint8), set(), {}
        return result.labels.copy(), set(result.objects), dict(result.confidence)

    def _put_parts(
        self,
        event: Event,
        labels: Labels,
        objects: set[int],
        confidence: dict[int, float],
        seconds: dict[str, float],
    ) -> None:
        assert event.frame is not None
        numbers = tuple(sorted(objects & self.state_at(event.seq).objects.keys()))
        visible = np.bincount(labels.reshape(-1), minlength=256) > 0
        sure = {n: confidence[n] if visible[n] else 0.0 for n in numbers}
        self.put(result_of(event.frame, event.seq, labels, numbers, sure, seconds))

    def _without_removed(self, found: FrameResult, seq: int) -> FrameResult:
        kept = self.state_at(seq).objects
        gone = [n for n in found.objects if n not in kept]
        if not gone:
            return found
        labels = found.labels.copy()
        labels[np.isin(labels, gone)] = 0
        numbers = tuple(n for n in found.objects if n in kept)
        sure = {n: found.confidence[n] for n in numbers}
        return result_of(found.frame, found.seq, labels, numbers, sure, found.seconds)

    def _support_mask(self, image: int | str, said: Annotation) -> Tensor:
        pixels = self.tracker.images[image] if isinstance(image, str) else None
        size = self.size if pixels is None else (pixels.shape[1], pixels.shape[2])
        if not said.positive:  # an object that was nowhere in a frame that was committed
            return said.rasterize(size)
        return annotation_mask(said, size, width=self.tracker.matcher.model.point_width(size))

    def _keep_state(self, seq: int, state: SessionState) -> None:
        self._states[seq] = state
        while len(self._states) > _STATES:
            self._states.pop(next(iter(self._states)))
