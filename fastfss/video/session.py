"""A video and what a person says of it: masks that follow objects, and a history of all changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Event as Flag
from threading import RLock
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastfss.annotation import Annotation, SupportMask
from fastfss.data import ImageLike, MaskLike, read_image, read_mask
from fastfss.errors import expected, expected_kind
from fastfss.interactive.refinement import RefinementName, get_refinement
from fastfss.methods import FewShotSegmenter
from fastfss.video.cache import FeatureCache
from fastfss.video.clicking import ClickModel
from fastfss.video.history import History
from fastfss.video.label_files import read_object_mask
from fastfss.video.limits import DEFAULT_LIMITS, Limits
from fastfss.video.log import Event, EventKind, EventLog
from fastfss.video.matching import check_size, matcher_of
from fastfss.video.memory import Memory, MemoryConfig
from fastfss.video.propagating import Propagation
from fastfss.video.results import FrameResult, Labels, Results, result_of
from fastfss.video.source import FrameSource, LiveSource, frame_of
from fastfss.video.state import SessionState, marks_of
from fastfss.video.tracking import Tracker
from fastfss.video.trail import Trails

if TYPE_CHECKING:
    from fastfss.video.export import ExportFormat

Direction = Literal["forward", "backward", "both"]


class VideoSession:
    """Objects in a video, what is said of them, and their masks in each frame.

    Made by `fastfss.video.open`. Each change is an event of a log that only grows; undo and redo
    move through all of it, and the masks that a state had come back bit for bit. A result carries
    the number of the state it was computed from (`FrameResult.seq`).

    All methods may be called from any thread, one at a time runs. A change while masks are being
    propagated ends the propagation at the next frame.

    Args:
        source: of the frames.
        model: any method; `LabelPropagation` also matches the frames before.
        size: pixels of the shorter side as the model sees frames, where its frames keep their
            aspect; smaller and larger frames are brought to it.
        memory: how much is remembered.
        cache_bytes: of features, beside those of frames of which something is said.
        refinement: of masks that are followed: "none", "guided", "grabcut".
        click_refinement: of masks that answer a click.
        click_model: what answers clicks and strokes, a model that takes hints; None: the model.
        limits: what is refused.
    """

    def __init__(
        self,
        source: FrameSource,
        model: FewShotSegmenter,
        *,
        size: int | None = 480,
        memory: MemoryConfig | None = None,
        cache_bytes: int = 512 << 20,
        refinement: RefinementName = "none",
        click_refinement: RefinementName = "guided",
        click_model: FewShotSegmenter | None = None,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        check_size(size)
        self.source = source
        self.model = model
        self.limits = limits
        memory = memory or MemoryConfig()
        clicks = None if click_model is None else ClickModel(click_model)
        self.tracker = Tracker(
            source,
            matcher_of(model, size),
            FeatureCache(cache_bytes),
            refinement=get_refinement(refinement),
            click_refinement=get_refinement(click_refinement),
            clicks=clicks,
            prior=memory.prior,
        )
        self.about: dict[str, Any] = {"method": model.method, "size": size, **model.settings()}
        if clicks is not None:
            self.about["clicks"] = clicks.about
        self.at = History(self.tracker, memory)
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

    # ---- What is said of a frame

    def add_clicks(
        self,
        frame: int,
        object: int,
        points: Sequence[tuple[float, float]],
        labels: Sequence[int] | None = None,
        *,
        replace: bool = False,
    ) -> FrameResult:
        """Say what is at pixels; the frame's new masks.

        Args:
            frame: its number.
            object: its number.
            points: (x, y) from the upper left corner.
            labels: 1 object, 0 not the object; all 1 by default.
            replace: forget what was said of the object in this frame before.

        Raises:
            ValueError: an unknown frame or object, points outside, as many labels as no points.
        """
        given = [1] * len(points) if labels is None else list(labels)
        if len(given) != len(points) or not points or set(given) - {0, 1}:
            raise expected("labels", "0 or 1 for each of at least one point", str(labels))
        said = Annotation()
        for (x, y), label in zip(points, given, strict=True):
            said = said.point(x, y, positive=bool(label))
        return self.annotate(frame, object, said, replace=replace)

    def add_box(
        self, frame: int, object: int, box: tuple[float, float, float, float], **options: bool
    ) -> FrameResult:
        """Say that the object is in a box (left, top, right, bottom), and nowhere else."""
        return self.annotate(frame, object, Annotation().box(*box), **options)

    def add_scribble(
        self,
        frame: int,
        object: int,
        path: Sequence[tuple[float, float]],
        *,
        positive: bool = True,
        width: float = 5,
        replace: bool = False,
    ) -> FrameResult:
        """Say what is along a line of points."""
        said = Annotation().stroke(path, positive=positive, width=width)
        return self.annotate(frame, object, said, replace=replace)

    def annotate(
        self, frame: int, object: int, said: Annotation, *, replace: bool = False
    ) -> FrameResult:
        """Say anything of an object in a frame; the frame's new masks.

        Raises:
            ValueError: an unknown frame or object, no mark, or marks outside of the frame.
        """
        with self._lock:
            frame, object = frame_of(self.source, frame), self._object(object)
            if not said.marks:
                raise expected("annotation", "at least one mark", "none")
            said.rasterize(self.size)  # so that a bad mark changes nothing
            data: dict[str, Any] = {"marks": marks_of(said)}
            self._append("annotate", frame=frame, object=object, data=data | _flag(replace))
            return self._needed(frame)

    def add_mask(self, frame: int, masks: Mapping[int, MaskLike]) -> FrameResult:
        """Give the masks of objects in a frame: they are taken as they are.

        Args:
            frame: its number.
            masks: object -> mask of the frame's size: 0 background, anything else object.

        Raises:
            ValueError: an unknown frame or object, a mask of another size or that no mask can be.
        """
        with self._lock:
            frame = frame_of(self.source, frame)
            given = {
                self._object(number): read_object_mask(mask, self.size, f"masks[{number}]")
                for number, mask in masks.items()
            }
            if not given:
                raise expected("masks", "at least one", "none")
            data = {"masks": {str(n): marks_of(Annotation().area(m)) for n, m in given.items()}}
            self._append("mask", frame=frame, data=data)
            return self._needed(frame)

    def add_labels(self, frame: int, labels: Tensor | npt.NDArray[np.integer]) -> FrameResult:
        """Give the masks of all objects in a frame as one label map; those that are new are added.

        Args:
            frame: its number.
            labels: (H, W): 0 background, n object n, 255 nothing said.

        Raises:
            ValueError: an unknown frame, another size, or numbers that no object may have.
        """
        with self._lock:
            frame = frame_of(self.source, frame)
            found = torch.as_tensor(np.asarray(labels))
            if tuple(found.shape) != self.size:
                wanted = f"(H, W) of the frame, {self.size[0]} x {self.size[1]}"
                raise expected("labels", wanted, str(tuple(found.shape)))
            present = [int(n) for n in found.unique() if n not in (0, 255)]
            if not present or not 1 <= min(present) <= max(present) <= self.limits.objects:
                wanted = f"numbers 1 to {self.limits.objects}, 0 for background, 255 for unsaid"
                raise expected("labels", wanted, str(present[:5] or "only background"))
            numbers = sorted({*self.objects, *present})
            masks = {}
            for number in numbers:
                mask = (found == number).to(torch.uint8).masked_fill_(found == 255, 255)
                masks[str(number)] = marks_of(Annotation().area(mask))
            new = {str(n): f"object {n}" for n in present if n not in self.objects}
            self._append("mask", frame=frame, data={"masks": masks, "objects": new})
            return self._needed(frame)

    def clear(self, frame: int, object: int | None = None) -> FrameResult | None:
        """Forget what was said of a frame, or of one object in it; its masks then.

        They are those that were propagated to it, if any.
        """
        with self._lock:
            frame = frame_of(self.source, frame)
            number = None if object is None else self._object(object)
            said = self.state.said_of(frame)
            if not said or (number is not None and number not in said):
                raise expected("frame", "one of which something is said", str(frame))
            self._append("clear", frame=frame, object=number)
            return self.result(frame)

    # ---- Supports

    def add_support(
        self, image: ImageLike, masks: Mapping[int, SupportMask], *, name: str | None = None
    ) -> int:
        """Show objects in an image from elsewhere; the support's number, for `forget`.

        Args:
            image: in any form `fastfss.data.read_image` takes.
            masks: object -> mask of the image, or Annotation.
            name: for lists.
        """
        with self._lock:
            pixels = read_image(image, argument="image")
            size = (pixels.shape[1], pixels.shape[2])
            self.limits.check_size(size, "image")
            given = {}
            for number, mask in masks.items():
                if isinstance(mask, Annotation):
                    mask.rasterize(size)
                    said = mask
                else:
                    said = Annotation().area(read_mask(mask, size=size, argument=f"mask {number}"))
                if not said.positive:
                    raise expected(f"mask {number}", "something positive", "nothing")
                given[str(self._object(number))] = marks_of(said)
            if not given:
                raise expected("masks", "at least one", "none")
            key = f"support-{len(self.history) + 1}"
            self.tracker.images[key] = pixels
            data = {"masks": given, "image": key, "name": name or key}
            return self._append("support", data=data).seq

    def commit(self, frame: int) -> int:
        """Keep a frame with its masks for good, as a support; its number, for `forget`.

        Raises:
            ValueError: an unknown frame, or one without masks.
        """
        with self._lock:
            frame = frame_of(self.source, frame)
            result = self.result(frame)
            if result is None or not result.visible:
                raise expected("frame", "one with masks", f"{frame}, which has none")
            masks = {str(n): marks_of(Annotation().area(result.mask(n))) for n in result.objects}
            return self._append("commit", frame=frame, data={"masks": masks}).seq

    def forget(self, support: int) -> None:
        """Take a support away; ValueError if there is none of the number."""
        with self._lock:
            known = [one.seq for one in self.state.supports]
            if support not in known:
                have = ", ".join(map(str, known)) or "none"
                raise expected("support", f"one of {have}", str(support))
            self._append("forget", data={"support": support})

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

    # ---- Masks

    def result(self, frame: int) -> FrameResult | None:
        """The newest masks of a frame in the current state; None if there are none."""
        with self._lock:
            return self.at.newest(frame_of(self.source, frame))

    def masks(self, frame: int) -> Labels:
        """The label map (H, W) of a frame, 0 where nothing is known."""
        found = self.result(frame)
        return np.zeros(self.size, np.uint8) if found is None else found.labels

    @property
    def frames(self) -> tuple[int, ...]:
        """The frames that have masks in the current state."""
        counts, results = self.at.log.counts, self.at.results
        return tuple(f for f in results.frames if results.seq(f, counts) is not None)

    def sightings(self) -> list[tuple[int, tuple[int, ...]]]:
        """The frames that have masks in the current state, each with the objects that it shows."""
        with self._lock:
            found = self.at.results.sightings(self.at.log.counts)
            return [(frame, tuple(n for n in seen if n in self.objects)) for frame, seen in found]

    def step(self, image: ImageLike | int) -> FrameResult:
        """Segment the next frame of a live source, or any one frame.

        Args:
            image: the frame that came; or the number of one.

        Raises:
            ValueError: nothing is known of any object; a frame of another size or number.
        """
        if isinstance(image, int):
            return next(self.propagate(image, first=image, last=image, anew=True))
        with self._lock:
            if not isinstance(self.source, LiveSource):
                raise expected_kind("image", "the number of a frame of a video", "an image")
            frame = self.source.push(image)
            self.at.results.size = self.source.size
            known = self.at.known(self.seq, near=frame)
            if not known:
                none = np.zeros(self.size, np.uint8)
                return self.at.put(result_of(frame, self.seq, none, (), {}, {}))
            references, objects = self.tracker.references(known), tuple(sorted(self.objects))
            result = self.tracker.follow(frame, references, self._live, objects, {}, self.seq)
            return self.at.put(result)

    def propagate(
        self,
        start: int,
        *,
        direction: Direction = "forward",
        first: int = 0,
        last: int | None = None,
        cancel: Flag | Callable[[], bool] | None = None,
        anew: bool = False,
    ) -> Propagation:
        """Carry the masks on from a frame; each frame's as it is done.

        It is one change, also if it ends early: by `cancel`, by leaving the iterator, or because
        something else was changed meanwhile.

        Args:
            start: a frame with masks; if it has none, it is segmented first.
            direction: "forward", "backward", or "both", one after the other.
            first: the first frame to segment; that of the video by default.
            last: likewise, the last.
            cancel: looked at before each frame.
            anew: segment `start` even though it has masks.

        Raises:
            ValueError: an unknown frame or direction, or nothing is known of any object.
        """
        with self._lock:
            start = frame_of(self.source, start, "start")
            first = frame_of(self.source, first, "first")
            last = frame_of(self.source, self.count - 1 if last is None else last, "last")
            if direction not in get_args(Direction):
                wanted = f"one of {', '.join(get_args(Direction))}"
                raise expected("direction", wanted, repr(direction))
            if not first <= start <= last:
                raise expected("start", f"{first} to {last}", str(start))
            if not self.at.known(self.seq):
                raise expected("propagate", "an annotated frame or a support", "none")
            data: dict[str, Any] = {"direction": direction, "first": first, "last": last}
            data |= _flag(anew, "anew")
            seed = self.at.newest(start)
            if seed is not None and not anew and self.at.trails.find(start, seed.seq):
                # Said in the event, so that it is done again alike.
                data["continues"] = seed.seq
            event = self._append("propagate", frame=start, data=data)
            return Propagation(self.at, event, cancel, self._lock)

    def stats(self) -> dict[str, Any]:
        """Latencies by stage, and what is kept."""
        cache = self.tracker.cache
        return {
            "seconds": self.tracker.watch.percentiles(),
            "cache": {
                "frames": len(cache),
                "bytes": cache.nbytes,
                "hits": cache.hits,
                "misses": cache.misses,
            },
            "results": {"frames": len(self.frames), "bytes": self.at.results.nbytes},
            "events": len(self.history),
            "supports": len(self.state.supports),
            "prompted": len(self.state.prompted),
        }

    def export(self, path: str | Path, format: ExportFormat) -> Path:
        """Write the masks; see `fastfss.video.export`."""
        from fastfss.video.export import export

        return export(self, Path(path), format)

    def save(self, folder: str | Path) -> None:
        """Write all of it to a folder, for `fastfss.video.open(..., workspace=folder)`."""
        from fastfss.video.workspace import save

        with self._lock:
            save(self, Path(folder))

    def close(self) -> None:
        """Give back what is held open."""
        with self._lock:
            self.source.close()

    def __enter__(self) -> VideoSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

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

    def _needed(self, frame: int) -> FrameResult:
        found = self.at.newest(frame)
        assert found is not None
        return found

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


def _flag(value: bool, name: str = "replace") -> dict[str, bool]:
    return {name: True} if value else {}
