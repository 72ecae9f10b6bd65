"""A video and what a person says of it: masks that follow objects."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Event as Flag
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from fastfss.data import ImageLike
from fastfss.errors import expected, expected_kind
from fastfss.interactive.refinement import RefinementName, get_refinement
from fastfss.methods import FewShotSegmenter
from fastfss.video.cache import FeatureCache
from fastfss.video.clicking import ClickModel
from fastfss.video.limits import DEFAULT_LIMITS, Limits
from fastfss.video.matching import check_size, matcher_of
from fastfss.video.memory import MemoryConfig
from fastfss.video.prompted import PromptedSession
from fastfss.video.propagating import Propagation
from fastfss.video.results import FrameResult, Labels, result_of
from fastfss.video.source import FrameSource, LiveSource, frame_of
from fastfss.video.tracking import Tracker

if TYPE_CHECKING:
    from fastfss.video.export import ExportFormat

Direction = Literal["forward", "backward", "both"]


class VideoSession(PromptedSession):
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
        memory = memory or MemoryConfig()
        clicks = None if click_model is None else ClickModel(click_model)
        tracker = Tracker(
            source,
            matcher_of(model, size),
            FeatureCache(cache_bytes),
            refinement=get_refinement(refinement),
            click_refinement=get_refinement(click_refinement),
            clicks=clicks,
            prior=memory.prior,
        )
        super().__init__(source, tracker, memory, limits)
        self.model = model
        self.about: dict[str, Any] = {"method": model.method, "size": size, **model.settings()}
        if clicks is not None:
            self.about["clicks"] = clicks.about

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
            if anew:
                data["anew"] = True
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
