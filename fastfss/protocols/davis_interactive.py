"""DAVIS's interactive track: scribbles on a frame, masks of all frames, scribbles on the worst one.

Caelles et al., arXiv 1803.00557. A round ends when all masks are there; then the simulated
annotator corrects the frame of the lowest J&F that has no scribbles yet.

    AUC    = area under J&F over accumulated time, from (0, 0) to the time that is available
    J&F@60 = J&F after 60 s, between two rounds in a straight line
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastfss.annotation import Annotation
from fastfss.data.videos import Video
from fastfss.errors import expected
from fastfss.methods import FewShotSegmenter
from fastfss.protocols.scribbles import (
    Scribble,
    correcting_scribbles,
    read_scribbles,
    stroke_inside,
)
from fastfss.protocols.video_metrics import score_frame
from fastfss.video import MemoryConfig, VideoSession
from fastfss.video.source import ImageFiles

ROUNDS = 8
SECONDS_PER_OBJECT = 30.0  # and round
AT_SECONDS = 60.0
_WIDTH = 1 / 240  # of a stroke, of the shorter side: the errors it lies in may be thin


@dataclass(frozen=True)
class Sample:
    """One annotator's begin of one sequence.

    Attributes:
        sequence: its name.
        objects: how many.
        scores: J&F after each round, the mean over frames and objects.
        seconds: that each round took.
    """

    sequence: str
    objects: int
    scores: tuple[float, ...]
    seconds: tuple[float, ...]


@dataclass(frozen=True)
class InteractiveReport:
    """What came out.

    Attributes:
        samples: of all sequences.
        curve: (accumulated seconds, J&F) after each round, means over samples.
        available: mean time that the samples had, in seconds.
    """

    samples: tuple[Sample, ...]
    curve: tuple[tuple[float, float], ...]
    available: float

    @property
    def auc(self) -> float:
        """Area under the curve, 1 at most."""
        times, scores = (np.array(one) for one in self._whole())
        return float((np.diff(times) * (scores[1:] + scores[:-1]) / 2).sum() / times[-1])

    def at(self, seconds: float = AT_SECONDS) -> float:
        """J&F at a time."""
        return float(np.interp(seconds, *self._whole()))

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        samples = [asdict(sample) for sample in self.samples]
        return {"auc": self.auc, "at60": self.at(), "curve": self.curve, "samples": samples}

    def _whole(self) -> tuple[list[float], list[float]]:
        times, scores = (list(one) for one in zip(*self.curve, strict=True))
        end = max(self.available, times[-1])
        return [0.0, *times, end], [0.0, *scores, scores[-1]]


def report_of(samples: Iterable[Sample]) -> InteractiveReport:
    """The report of samples; where one has fewer rounds, its last score stands for those missing.

    Raises:
        ValueError: no sample.
    """
    samples = tuple(samples)
    if not samples:
        raise expected("samples", "at least one", "none")
    rounds = max(len(one.scores) for one in samples)
    scores = np.array([[*s.scores, *s.scores[-1:] * (rounds - len(s.scores))] for s in samples])
    seconds = np.array([[*s.seconds, *(0.0,) * (rounds - len(s.seconds))] for s in samples])
    times = seconds.cumsum(axis=1).mean(axis=0)
    curve = tuple((float(t), float(y)) for t, y in zip(times, scores.mean(axis=0), strict=True))
    available = SECONDS_PER_OBJECT * ROUNDS * float(np.mean([one.objects for one in samples]))
    return InteractiveReport(samples, curve, available)


def first_scribbles(video: Video, folder: Path | None) -> list[list[Scribble]]:
    """What each annotator drew first: DAVIS's files, or else the simulated one on the first frame.

    Args:
        video: the sequence.
        folder: ``Scribbles`` of DAVIS; None, or without the sequence: simulated.
    """
    files = [] if folder is None else sorted((folder / video.name).glob("*.json"))
    if files:
        return [read_scribbles(file) for file in files]
    truth = video.labels(0).numpy()
    drawn = correcting_scribbles(np.zeros_like(truth), truth, video.objects, 0)
    without = set(video.objects) - {one.object for one in drawn}
    return [[*drawn, *(stroke_inside(truth == n, n, 0) for n in sorted(without))]]


def evaluate_interactive(
    model: FewShotSegmenter,
    videos: Mapping[str, Video],
    *,
    scribbles: Path | None = None,
    rounds: int = ROUNDS,
    size: int | None = 480,
    memory: MemoryConfig | None = None,
    progress: Callable[[], None] | None = None,
) -> InteractiveReport:
    """Run the loop on sequences of which all frames have masks.

    Args:
        model: in eval mode.
        videos: name -> sequence.
        scribbles: DAVIS's folder of them; without it the first ones are simulated too.
        rounds: at most.
        size, memory: of `fastfss.video.VideoSession`.
        progress: called after each round.
    """
    samples = []
    for name, video in videos.items():
        for begin in first_scribbles(video, scribbles):
            source = ImageFiles(video.frames, name)
            with VideoSession(source, model, size=size, memory=memory) as session:
                samples.append(_sample(session, video, begin, rounds, progress))
    return report_of(samples)


def _sample(
    session: VideoSession,
    video: Video,
    drawn: Sequence[Scribble],
    rounds: int,
    progress: Callable[[], None] | None,
) -> Sample:
    truths = [video.labels(n).numpy() for n in range(len(video.frames))]
    objects = sorted({*video.objects, *(one.object for one in drawn)} - {0})
    available = SECONDS_PER_OBJECT * ROUNDS * len(objects)
    for number in objects:
        session.add_object(number=number)
    scores: list[float] = []
    seconds: list[float] = []
    annotated: set[int] = set()
    for _ in range(rounds):
        started = time.perf_counter()
        tell(session, drawn)
        if session.state.prompted:
            for _ in session.propagate(drawn[0].frame, direction="both"):
                pass
        took = time.perf_counter() - started
        if sum(seconds) + took > available:
            break  # a round that comes too late does not count
        annotated |= {one.frame for one in drawn}
        by_frame = [
            float(np.mean(list(score_frame(session.masks(n), truth, objects).values())))
            for n, truth in enumerate(truths)
        ]
        scores.append(float(np.mean(by_frame)))
        seconds.append(took)
        if progress is not None:
            progress()
        drawn = []
        for frame in sorted(set(range(len(truths))) - annotated, key=lambda n: by_frame[n]):
            drawn = correcting_scribbles(session.masks(frame), truths[frame], objects, frame)
            if drawn:
                break
        if not drawn:
            break  # nothing is left to correct
    return Sample(video.name, len(objects), tuple(scores or [0.0]), tuple(seconds or [available]))


def tell(session: VideoSession, drawn: Sequence[Scribble]) -> None:
    """Say what scribbles say: each is its object's, and not that of the others that it crosses."""
    for frame in sorted({one.frame for one in drawn}):
        here = [one for one in drawn if one.frame == frame]
        labels = session.masks(frame)
        width = max(1.0, _WIDTH * min(session.size))
        for number in session.objects:
            mask = labels == number
            said = Annotation()
            for one in here:
                path = one.pixels(session.size)
                crosses = any(mask[int(y), int(x)] for x, y in path)
                if one.object == number or crosses or not mask.any():
                    said = said.stroke(path, positive=one.object == number, width=width)
            if said.positive or (said.marks and mask.any()):
                session.annotate(frame, number, said)
