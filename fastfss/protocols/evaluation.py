"""Evaluating a method by a protocol."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastfss.data.sets import MaskSet
from fastfss.errors import expected
from fastfss.methods import AMP, FewShotSegmenter
from fastfss.methods.prediction import Prediction
from fastfss.protocols._counting import count_pairs
from fastfss.protocols.episode_lists import EpisodeList
from fastfss.protocols.episodes import check_counts
from fastfss.protocols.protocol import Protocol
from fastfss.protocols.reading import ReadEpisode, Reader, joined
from fastfss.protocols.scores import EpisodeCounts, Figures, figures_of
from fastfss.task import Task

# Called after each episode.
Progress = Callable[[], None]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What came out of a fold.

    Attributes:
        figures: of the fold.
        counts: of every episode, in the list's order.
        seconds: of the evaluation, reading included, in this process.
        method_seconds: of the method alone, likewise.
        peak_mib: the process's memory, and on a GPU what torch took of its.
    """

    figures: Figures
    counts: EpisodeCounts
    seconds: float
    method_seconds: float
    peak_mib: float

    def worst(self, count: int) -> list[int]:
        """The numbers of the episodes with the least IoU, the worst first."""
        order = np.argsort(self.counts.iou, kind="stable")
        return [int(number) for number in order[:count]]


@torch.no_grad()
def evaluate(
    model: FewShotSegmenter,
    protocol: Protocol,
    images: MaskSet,
    episodes: EpisodeList,
    *,
    batch: int = 1,
    progress: Progress | None = None,
) -> Evaluation:
    """Segment the queries of a list and count.

    In a torch.distributed group the processes share the episodes, i going to process i mod N, and
    each gets all figures. They are those of one process to the last bit where both compute alike:
    with as many threads.

    Args:
        model: in eval mode.
        protocol: how images are read and scores counted.
        images: the set that the list is of.
        episodes: see draw_episodes.
        batch: up to so many neighbouring episodes of equal shapes go through the method together.
            What is counted stays the same but for rounding: other sizes of matrix products may add
            up in another order, so that a pixel on an edge may change sides.
        progress: of this process's episodes.

    Raises:
        ValueError: a list of another set, no episode, a batch below 1, a protocol that does not fit
            the method, or AMP, whose published episodes depend on those before, in parts.
    """
    check_counts(batch=batch)
    if episodes.set_digest != images.digest:
        wanted = f"a list of {images.name} in '{images.root}'"
        raise expected("episodes", wanted, f"one of another {episodes.set_name}")
    if not episodes.episodes:
        raise expected("episodes", "at least one", "none")
    rank, processes = _group()
    if isinstance(model, AMP) and model.background == "running" and max(batch, processes) > 1:
        # Its episodes move the background's row for the next ones, whoever takes them.
        wanted = "AMP with background='episode' for several processes or a batch"
        raise expected("model", wanted, "'running'")
    reader = Reader(protocol, images, model)
    device = model.device
    ways = len(episodes.episodes[0].classes)
    mine = torch.zeros(len(episodes.episodes), ways + 1, ways + 1, dtype=torch.int64, device=device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    started, clock = time.perf_counter(), _Clock(device)
    waiting: list[tuple[int, ReadEpisode]] = []

    def count() -> None:
        with clock:
            logits = segment_episode(model, protocol, joined([read for _, read in waiting]))
        for place, (number, read) in enumerate(waiting):
            labels = reader.labels(read, logits[place : place + 1])
            pairs, _ = count_pairs(labels, read.truth, labels=ways + 1)
            mine[number] = pairs[0]
            if progress is not None:
                progress()
        waiting.clear()

    for number, listed in enumerate(episodes.episodes):
        if number % processes != rank:
            reader.skip(listed)
            continue
        read = reader.read(listed)
        if waiting and not _fit(protocol, read, waiting[0][1]):
            count()
        waiting.append((number, read))
        if len(waiting) == batch:
            count()
    if waiting:
        count()
    if processes > 1:
        torch.distributed.all_reduce(mine)
    counts = EpisodeCounts(
        mine.cpu().numpy(),
        np.array([one.classes for one in episodes.episodes]),
        np.array([one.run for one in episodes.episodes]),
    )
    return Evaluation(
        figures_of(counts, episodes.classes, protocol.figure),
        counts,
        time.perf_counter() - started,
        clock.seconds(),
        _peak_mib(device),
    )


class _Clock:
    """How long what runs inside it takes; a GPU is not waited for before the end."""

    def __init__(self, device: torch.device) -> None:
        self._gpu = device.type == "cuda"
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._since = self._seconds = 0.0

    def __enter__(self) -> None:
        if self._gpu:
            both = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            self._events.append(both)
            both[0].record()
        self._since = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        if self._gpu:
            self._events[-1][1].record()
        self._seconds += time.perf_counter() - self._since

    def seconds(self) -> float:
        if not self._gpu:
            return self._seconds
        torch.cuda.synchronize()
        return float(sum(start.elapsed_time(end) for start, end in self._events)) / 1e3


def segment_episode(model: FewShotSegmenter, protocol: Protocol, read: ReadEpisode) -> Tensor:
    """The logits (B, 1 + W, h, w) of an episode's query, or of a batch of episodes.

    Raises:
        ValueError: a method that needs more than masks.
    """
    tasks = [
        _task(model, protocol, *way)
        for way in zip(read.images, read.masks, read.backgrounds, strict=True)
    ]
    prediction: Prediction = model.segment(read.query, tasks, _output_size(protocol, read))
    return prediction.logits


def _output_size(protocol: Protocol, read: ReadEpisode) -> tuple[int, int]:
    """The size of the logits; a frame is cut away from them, where the image has one."""
    framed = protocol.reading in ("letterbox", "method")
    like = read.query if framed else read.truth
    return like.shape[-2], like.shape[-1]


def _fit(protocol: Protocol, one: ReadEpisode, other: ReadEpisode) -> bool:
    """Whether two episodes can be of one batch."""
    sizes = _output_size(protocol, one), _output_size(protocol, other)
    return one.shapes == other.shapes and sizes[0] == sizes[1]


def _task(
    model: FewShotSegmenter,
    protocol: Protocol,
    images: Sequence[Tensor],
    masks: Sequence[Tensor],
    backgrounds: Sequence[Tensor],
) -> Task:
    if protocol.figure == "panet" and model.method in ("panet", "ppnet"):
        encode: Callable[..., Task] = model.encode_support
        return encode(list(images), list(masks), list(backgrounds))
    return model.encode_support(list(images), list(masks))


def _group() -> tuple[int, int]:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def _peak_mib(device: torch.device) -> float:
    # Linux counts KiB, macOS bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
    if device.type == "cuda":
        peak = max(peak, torch.cuda.max_memory_allocated(device) / 2**20)
    return float(peak)
