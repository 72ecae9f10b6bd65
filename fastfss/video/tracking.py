"""The masks of frames: features, what is known of other frames, following, answering a click."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from fastfss.annotation import UNSAID, Annotation, annotation_mask
from fastfss.interactive.refinement import Refinement, grabcut
from fastfss.methods import Features
from fastfss.video.cache import FeatureCache
from fastfss.video.clicking import ClickModel
from fastfss.video.matching import Matcher, Reference, Seen, trust
from fastfss.video.memory import Memory
from fastfss.video.results import FrameResult, Labels, result_of
from fastfss.video.source import FrameSource
from fastfss.video.trail import Trail

_TIMES = 512  # latencies that are kept of each stage
_REFERENCES = 32  # that are kept, about a megabyte each


class Stopwatch:
    """How long the stages of the last frames took, by a clock in seconds."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._last: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=_TIMES))

    @contextmanager
    def stage(self, name: str, seconds: dict[str, float] | None = None) -> Iterator[None]:
        """Time a block, for `percentiles` and into `seconds`."""
        started = self._clock()
        yield
        took = self._clock() - started
        self._last[name].append(took)
        if seconds is not None:
            seconds[name] = seconds.get(name, 0.0) + took

    def percentiles(self) -> dict[str, dict[str, float]]:
        """Stage -> {"p50": seconds, "p95": seconds, "count": of so many}."""
        found = {}
        for name, times in list(self._last.items()):
            p50, p95 = np.percentile(list(times), (50, 95))
            found[name] = {"p50": float(p50), "p95": float(p95), "count": float(len(times))}
        return found


@dataclass(frozen=True, eq=False)
class Known:
    """An image of which masks are known, for references.

    Attributes:
        key: of the masks: the same key is the same reference.
        image: key of the image's features: a frame's number, or the name of another image.
        masks: object -> uint8 (H, W) of {0, 1, 255}.
    """

    key: tuple[Hashable, ...]
    image: int | str
    masks: Mapping[int, Tensor]

    @property
    def annotated(self) -> bool:
        """Whether it is an annotated frame, not a support."""
        return self.key[0] == "frame"


class Tracker:
    """Computes masks; keeps nothing but features and references, which it could make again.

    Args:
        source: of the frames.
        matcher: the model.
        cache: of features.
        refinement: of masks that are followed; None leaves them as they are.
        click_refinement: of masks that answer a click.
        clicks: what answers clicks; None: the matcher.
        prior: reach of the temporal prior as a share of the shorter side; 0 for none.
    """

    def __init__(
        self,
        source: FrameSource,
        matcher: Matcher,
        cache: FeatureCache,
        *,
        refinement: Refinement | None,
        click_refinement: Refinement | None,
        clicks: ClickModel | None = None,
        prior: float,
    ) -> None:
        self.source = source
        self.matcher = matcher
        self.cache = cache
        self.images: dict[str, Tensor] = {}
        self.watch = Stopwatch()
        self._refinement = refinement
        self._click_refinement = click_refinement
        self._clicks = clicks
        self._prior = prior
        self._references: dict[Hashable, Reference] = {}
        # Frames may be prepared by another thread.
        self._coming: dict[int | str, Future[Features]] = {}
        self._lock = Lock()  # of the cache and of what is coming
        self._source_lock = Lock()

    # ---- Images

    def pixels(self, image: int | str, seconds: dict[str, float] | None = None) -> Tensor:
        """uint8 (3, H, W) of a frame, or of an image from elsewhere."""
        if isinstance(image, str):
            return self.images[image]
        with self._source_lock, self.watch.stage("decode", seconds):
            return self.source.frame(image)

    def features(self, image: int | str, seconds: dict[str, float] | None = None) -> Features:
        """The features of a frame, or of an image from elsewhere."""
        with self._lock:
            kept = self.cache.get(image)
            coming = self._coming.get(image) if kept is None else None
        if kept is not None:
            return kept
        if coming is not None:
            with self.watch.stage("wait", seconds):
                return coming.result()
        return self._encoded(image, seconds)

    def prepare(self, frame: int, worker: Executor) -> None:
        """Have a frame decoded and encoded by another thread."""
        with self._lock:
            if frame not in self.cache and frame not in self._coming:
                self._coming[frame] = worker.submit(self._encoded, frame)

    @torch.inference_mode()
    def _encoded(self, image: int | str, seconds: dict[str, float] | None = None) -> Features:
        try:
            pixels = self.pixels(image, seconds)
            with self.watch.stage("encode", seconds):
                made = self.matcher.encode(pixels)
            with self._lock:
                return self.cache.put(image, made)
        finally:
            with self._lock:
                self._coming.pop(image, None)

    # ---- What is known

    @torch.inference_mode()
    def references(self, known: Sequence[Known]) -> list[Reference]:
        """The references of images; those that were made lately are not made again."""
        found = []
        for one in known:
            made = self._references.pop(one.key, None)
            if made is None:
                made = self.matcher.reference(self.features(one.image), one.masks)
            self._references[one.key] = made
            found.append(made)
        while len(self._references) > max(_REFERENCES, len(known)):
            self._references.pop(next(iter(self._references)))
        return found

    @torch.inference_mode()
    def seen(self, frame: int, labels: Labels, objects: tuple[int, ...]) -> Seen:
        """A frame of which the masks are there already."""
        features = self.features(frame)
        shares = self.matcher.shares(features, torch.from_numpy(labels.copy()), objects)
        return Seen(frame, features, objects, shares)

    # ---- Following

    @torch.inference_mode()
    def follow(
        self,
        frame: int,
        references: Sequence[Reference],
        memory: Memory,
        objects: tuple[int, ...],
        fixed: Mapping[int, Tensor],
        seq: int,
    ) -> FrameResult:
        """The masks of a frame; memory has seen it then.

        Args:
            frame: its number.
            references: what is known of other images.
            memory: of the frames before.
            objects: those to look for.
            fixed: object -> uint8 (H, W) of {0, 1}: masks of this frame that are known.
            seq: the state it is computed from.
        """
        seconds: dict[str, float] = {}
        features = self.features(frame, seconds)
        size = self.source.size
        with self.watch.stage("match", seconds):
            known = [*references, *memory.references]
            maps = self.matcher.follow(features, known, memory.recent, objects, size, self._prior)
        with self.watch.stage("enlarge", seconds):
            scores = F.interpolate(maps[None].float(), size, mode="bilinear")[0]
        if self._refinement is not None:
            with self.watch.stage("refine", seconds):
                scores = self._refined(frame, scores)
        with self.watch.stage("labels", seconds):
            labels = largest(scores, objects)
            confidence = _confidence(maps, objects)
            for number, mask in fixed.items():
                labels[labels == number] = 0
                labels[mask == 1] = number
                confidence[number] = float((mask == 1).any())
            array = labels.cpu().numpy()
        if fixed:
            memory.see(self.seen(frame, array, objects))
        else:
            memory.see(Seen(frame, features, objects, maps))
        self._remember(frame, seq, features, memory, array, objects, confidence)
        with self.watch.stage("pack", seconds):
            return result_of(frame, seq, array, objects, confidence, seconds)

    def _refined(self, frame: int, scores: Tensor) -> Tensor:
        assert self._refinement is not None
        image = self.pixels(frame)
        unsaid = torch.full(scores.shape[1:], UNSAID, dtype=torch.uint8)
        objects = [self._refinement(image, one, unsaid) for one in scores[1:].cpu()]
        found = torch.stack(objects).to(scores)
        return torch.cat([(1 - found.sum(0, keepdim=True)).clamp_min(0), found])

    def _remember(
        self,
        frame: int,
        seq: int,
        features: Features,
        memory: Memory,
        labels: Labels,
        objects: tuple[int, ...],
        confidence: Mapping[int, float],
    ) -> None:
        least = min((confidence[n] for n in objects if confidence[n] > 0), default=0.0)
        if memory.wants(frame, least):
            memory.keep(frame, seq, self._reference(features, labels, objects))

    def _reference(self, features: Features, labels: Labels, objects: tuple[int, ...]) -> Reference:
        masks = {n: torch.from_numpy((labels == n).astype(np.uint8)) for n in objects}
        return self.matcher.reference(features, masks)

    @torch.inference_mode()
    def remember(self, trail: Trail, masks: Sequence[FrameResult], memory: Memory) -> None:
        """Fill a memory with what a trail says.

        Args:
            trail: of the propagation.
            masks: of its confident frames.
            memory: empty.
        """
        for frame, objects, shares in trail.recent:
            memory.see(Seen(frame, self.features(frame), objects, shares))
        for one in masks:
            made = self._reference(self.features(one.frame), one.labels, one.objects)
            memory.keep(one.frame, one.seq, made)

    # ---- Answering

    @torch.inference_mode()
    def answer(
        self,
        frame: int,
        object: int,
        said: Annotation,
        others: Annotation,
        before: npt.NDArray[np.bool_] | None,
        last: npt.NDArray[np.bool_] | None,
        references: Sequence[Reference],
        seconds: dict[str, float],
    ) -> tuple[Tensor, float]:
        """The mask of one object after something was said of it, and how sure it is.

        Args:
            frame: its number.
            object: which one.
            said: of it in this frame.
            others: where other objects are in it, as far as that is said.
            before: (H, W), the mask it had before all that is said; None for none.
            last: (H, W), the mask it has now, which the last click is about; None for none.
            references: of other images.
            seconds: stage -> how long it took; added to.

        Returns:
            bool (H, W), and the mean probability inside.
        """
        size = self.source.size
        marks = _after_last_mask(said)
        if not marks.marks:
            mask = said.rasterize(size) == 1
            return mask, float(mask.any())
        marks = Annotation((*others.marks, *marks.marks))
        prior = None if before is None else torch.from_numpy(before)
        width = max(self.matcher.model.point_width(size), 1.0)
        boxed = any(mark.kind == "box" and mark.positive for mark in marks.marks)
        drawn = marks.rasterize(size, width=width)
        if prior is None and not boxed and marks.positive:
            drawn = annotation_mask(marks, size, unsaid="border", width=width)
        with self.watch.stage("answer", seconds):
            if boxed:
                # What is in a box may be either; that it is the object is a first guess alone.
                inside = drawn == 1
                points = Annotation(tuple(m for m in marks.marks if m.kind != "box"))
                exact = points.rasterize(size, width=width)
                drawn = torch.where(exact != UNSAID, exact, torch.where(inside, UNSAID, 0))
                drawn = drawn.to(torch.uint8)
                probability = grabcut(self.pixels(frame), inside.float(), drawn)
            elif self._clicks is not None:
                seen = prior if last is None else torch.from_numpy(last)
                features = self._click_features(frame, self._clicks, seconds)
                probability = self._clicks.answer(features, marks, seen, size)
                if prior is not None:
                    # A mask that was there is corrected around the clicks, and stays elsewhere.
                    trusted = trust(drawn, prior, size)
                    probability = torch.lerp(probability, prior.float(), trusted)
            else:
                features = self.features(frame, seconds)
                maps = self.matcher.answer(features, drawn, prior, references, object, size)
                enlarged = F.interpolate(maps[None, None].float(), size, mode="bilinear")
                probability = enlarged[0, 0].cpu()
        if self._click_refinement is not None and not boxed:
            with self.watch.stage("refine", seconds):
                exact = marks.rasterize(size)
                probability = self._click_refinement(self.pixels(frame), probability, exact)
        mask = probability > 0.5
        sure = float(probability[mask].mean()) if bool(mask.any()) else 0.0
        return mask, sure

    def prepared(self, frame: int) -> bool:
        """Whether a click on a frame, and following from it, find its features at hand."""
        with self._lock:
            keys = (frame,) if self._clicks is None else (frame, ("click", frame))
            return all(key in self.cache for key in keys)

    @torch.inference_mode()
    def prepare_click(self, frame: int) -> None:
        """Encode a frame before it is clicked on."""
        if self._clicks is not None:
            self._click_features(frame, self._clicks, {})
        self.features(frame)

    def _click_features(
        self, frame: int, clicks: ClickModel, seconds: dict[str, float]
    ) -> Features:
        key = ("click", frame)
        with self._lock:
            kept = self.cache.get(key)
        if kept is not None:
            return kept
        pixels = self.pixels(frame, seconds)
        with self.watch.stage("encode", seconds):
            made = clicks.encode(pixels)
        with self._lock:
            return self.cache.put(key, made)


def largest(
    scores: Tensor,  # (A + 1, H, W)
    objects: Sequence[int],
) -> Tensor:  # uint8 (H, W)
    """The number of the object with the largest score; 0 where the background's is, or equal.

    Object by object: a tenth of the time of `argmax`, whose int64 indices cost more than the rest.
    """
    labels = torch.zeros(scores.shape[1:], dtype=torch.uint8, device=scores.device)
    best = scores[0]
    for place, number in enumerate(objects, start=1):
        more = scores[place] > best
        labels.masked_fill_(more, number)
        if place < len(objects):
            best = torch.maximum(best, scores[place])
    return labels


def _confidence(maps: Tensor, objects: Sequence[int]) -> dict[int, float]:
    """Object -> the mean score inside of its mask, on the maps' own grid."""
    best, places = maps.max(dim=0)
    flat = places.reshape(-1)
    sums = torch.zeros(len(objects) + 1, device=maps.device).index_add_(0, flat, best.reshape(-1))
    counts = torch.bincount(flat, minlength=len(objects) + 1)
    means = (sums / counts.clamp_min(1)).clamp(0, 1).tolist()
    return dict(zip(objects, means[1:], strict=True))


def _after_last_mask(said: Annotation) -> Annotation:
    """The marks since the last mask, which the result holds already."""
    last = max((n for n, mark in enumerate(said.marks) if mark.mask is not None), default=-1)
    return Annotation(said.marks[last + 1 :])
