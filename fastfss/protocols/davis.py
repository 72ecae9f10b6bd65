"""DAVIS, semi-supervised: the masks of the first frame are given, those of all others are scored.

Perazzi et al., CVPR 2016; Pont-Tuset et al., arXiv 1704.00675. The first and the last frame of a
sequence do not count. Of an object the mean over its frames counts, of a set the mean over its
objects.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastfss.data.videos import Video
from fastfss.errors import expected
from fastfss.interactive.refinement import RefinementName
from fastfss.methods import FewShotSegmenter
from fastfss.protocols.video_metrics import ObjectScore, score_frame
from fastfss.video import MemoryConfig, VideoSession
from fastfss.video.source import ImageFiles

GOOD = 0.5  # recall is the share of frames that are better


@dataclass(frozen=True)
class DavisReport:
    """What came out.

    Attributes:
        objects: the scores of each object, sequences in order.
        frames: how many were segmented.
        seconds: how long that took, with reading and without scoring.
    """

    objects: tuple[ObjectScore, ...]
    frames: int
    seconds: float

    @property
    def figures(self) -> dict[str, float]:
        """J&F, and mean, recall and decay of J and of F."""
        return figures(self.objects)

    @property
    def fps(self) -> float:
        """Frames a second."""
        return self.frames / self.seconds if self.seconds else 0.0

    def by_sequence(self) -> dict[str, dict[str, float]]:
        """Sequence -> its `figures`."""
        names = dict.fromkeys(one.sequence for one in self.objects)
        return {name: figures([o for o in self.objects if o.sequence == name]) for name in names}

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        objects = [
            {"sequence": o.sequence, "object": o.object, "J": o.region, "F": o.contour}
            for o in self.objects
        ]
        return {
            "figures": self.figures,
            "sequences": self.by_sequence(),
            "objects": objects,
            "frames": self.frames,
            "fps": self.fps,
        }


def figures(objects: Sequence[ObjectScore]) -> dict[str, float]:
    """The figures of objects; each counts alike, whatever the number of its frames."""
    if not objects:
        raise expected("objects", "at least one", "none")

    def mean(of: Callable[[ObjectScore], float]) -> float:
        return float(np.mean([of(one) for one in objects]))

    return {
        "J&F": mean(lambda o: o.both),
        "J": mean(lambda o: o.region),
        "J_recall": mean(lambda o: float(np.mean(np.array(o.regions) > GOOD))),
        "J_decay": mean(lambda o: o.decay),
        "F": mean(lambda o: o.contour),
        "F_recall": mean(lambda o: float(np.mean(np.array(o.contours) > GOOD))),
        "F_decay": mean(lambda o: o.contour_decay),
    }


def evaluate_davis(
    model: FewShotSegmenter,
    videos: Mapping[str, Video],
    *,
    size: int | None = 480,
    memory: MemoryConfig | None = None,
    refinement: RefinementName = "none",
    progress: Callable[[], None] | None = None,
) -> DavisReport:
    """Follow the objects of each first frame through its sequence, and score the frames.

    Args:
        model: in eval mode.
        videos: name -> sequence; frames without a mask do not count.
        size: pixels of the shorter side as the model sees frames.
        memory, refinement: of `fastfss.video.VideoSession`.
        progress: called after each frame.

    Raises:
        ValueError: a sequence of which fewer than three frames have masks.
    """
    objects: list[ObjectScore] = []
    frames, seconds = 0, 0.0
    for name, video in videos.items():
        source = ImageFiles(video.frames, name)
        scores: dict[int, list[tuple[float, float]]] = {n: [] for n in video.objects}
        counted = sorted(set(video.annotations) - {0, len(video.frames) - 1})
        if not counted or not scores:
            raise expected(
                f"sequence '{name}'", "objects, and masks of three frames or more", "none"
            )
        with VideoSession(
            source, model, size=size, memory=memory, refinement=refinement, cache_bytes=0
        ) as session:
            started = time.perf_counter()
            session.add_labels(0, video.labels(0).numpy())
            for result in session.propagate(0, last=max(counted)):
                seconds += time.perf_counter() - started
                frames += 1
                if result.frame in video.annotations and result.frame in counted:
                    truth = video.labels(result.frame).numpy()
                    for number, both in score_frame(result.labels, truth, video.objects).items():
                        scores[number].append(both)
                if progress is not None:
                    progress()
                started = time.perf_counter()
        for number, pairs in scores.items():
            regions, contours = (tuple(one[place] for one in pairs) for place in (0, 1))
            objects.append(ObjectScore(name, number, regions, contours))
    return DavisReport(tuple(objects), frames, seconds)
