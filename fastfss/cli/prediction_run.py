"""The loop of ``fastfss predict``: read, segment and write, each beside the others."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Task as ShownTask
from rich.text import Text
from torch import Tensor

from fastfss.annotation import SupportMask
from fastfss.atomic import atomic_path
from fastfss.cli.prediction_folder import PendingQuery, PredictionFolder
from fastfss.data import read_image
from fastfss.result import Result
from fastfss.task import Task
from fastfss.text import Label

# For 12-megapixel photos reading takes 0.1 s and writing 0.8 s, most of it in zlib, which leaves
# Python's lock to others. More results waiting to be written would only fill the memory.
_READ_AHEAD = 2
_WRITERS = 2

# Overlays are looked at: level 1 is 4 times as fast as the usual 6, for 1.1 times the bytes.
_OVERLAY_COMPRESSION = 1

OnDone = Callable[[PendingQuery, Exception | None], None]


class Model(Protocol):
    """What predicting needs of a model."""

    def fit(
        self,
        shots: Sequence[tuple[Path, SupportMask | Label]],
        *,
        name: str,
        mask_value: int | None,
    ) -> Task:
        """Make a task from annotated images."""

    def point_width(self, size: tuple[int, int]) -> float:
        """How wide a point of an annotation is, in an image of a size."""

    def check_task(self, task: Task) -> None:
        """Refuse a task of another model."""

    def predict(self, query: Tensor, task: Sequence[Task]) -> Result:
        """Segment one image."""


def segment_queries(
    model: Model,
    tasks: Sequence[Task],
    pending: Sequence[PendingQuery],
    folder: PredictionFolder,
    on_done: OnDone,
) -> None:
    """Segment the queries and record each as soon as its outputs are complete.

    A query that cannot be read or segmented is passed to ``on_done`` with its error, and the rest
    goes on. When this stops early, by an error or by Ctrl-C, what is being written is finished and
    recorded first; a second Ctrl-C does not wait for that.

    Args:
        model: the model.
        tasks: one task a way.
        pending: what to segment.
        folder: where outputs and records go.
        on_done: called once a query, in order of completion.

    Raises:
        KeyboardInterrupt: after Ctrl-C.
    """
    writing: deque[tuple[PendingQuery, os.stat_result, Future[dict[str, Any]]]] = deque()

    def record_written(leave: int) -> None:
        while len(writing) > leave:
            query, before, written = writing.popleft()
            folder.add(query, before, written.result())
            on_done(query, None)

    with (
        interruptions() as interrupted,
        ThreadPoolExecutor(1) as reader,
        ThreadPoolExecutor(_WRITERS) as writers,
    ):
        try:
            for query, reading in _read_ahead(reader, pending):
                if interrupted.is_set():
                    raise KeyboardInterrupt
                try:
                    before, image = reading.result()
                    started = time.perf_counter()
                    result = model.predict(image, tasks)
                    seconds = time.perf_counter() - started
                except Exception as error:
                    if not is_the_querys_own(error):
                        raise
                    on_done(query, _named(error, query.path))
                    continue
                written = writers.submit(_write, query, image, result, seconds)
                writing.append((query, before, written))
                record_written(leave=_WRITERS)
        finally:
            record_written(leave=0)


@contextmanager
def interruptions() -> Iterator[threading.Event]:
    """Note Ctrl-C instead of raising it wherever the program is just then; raise the second."""
    noted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return

    def note(*_: object) -> None:
        if noted.is_set():
            raise KeyboardInterrupt
        noted.set()

    before = signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)


class _RateColumn(ProgressColumn):
    """How many are done a second."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: ShownTask) -> Text:
        """What the column says now."""
        return Text("" if task.speed is None else f"{task.speed:.3g} {self._unit}/s")


def progress_bar(console: Console, unit: str | None = None) -> Progress:
    """Return the progress bar; it shows once it is entered as a context.

    Args:
        console: where.
        unit: of what the rate is shown; None shows none.
    """
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        *(() if unit is None else (_RateColumn(unit),)),
        TimeRemainingColumn(),
        console=console,
    )


def _read_ahead(
    reader: ThreadPoolExecutor, pending: Sequence[PendingQuery]
) -> Iterator[tuple[PendingQuery, Future[tuple[os.stat_result, Tensor]]]]:
    ahead: deque[tuple[PendingQuery, Future[tuple[os.stat_result, Tensor]]]] = deque()
    for query in pending:
        ahead.append((query, reader.submit(_read, query.path)))
        if len(ahead) > _READ_AHEAD:
            yield ahead.popleft()
    yield from ahead


def _read(path: Path) -> tuple[os.stat_result, Tensor]:
    # The state before reading: a file that changes meanwhile is then seen as changed.
    before = path.stat()
    return before, read_image(path, argument="query")


def _write(query: PendingQuery, image: Tensor, result: Result, seconds: float) -> dict[str, Any]:
    """Write a query's outputs and return its part of the report."""
    result.save_mask(query.mask)
    with atomic_path(query.overlay) as temporary:
        overlay = result.overlay(image)
        overlay.save(temporary, format="PNG", compress_level=_OVERLAY_COMPRESSION)
    ways = [
        {
            "name": name,
            "label": way,
            "area": result.area(way),
            "confidence": round(confidence, 6),
            **({} if result.presence is None else {"presence": round(result.presence[way - 1], 6)}),
            "rle": result.rle(way),
        }
        for way, (name, confidence) in enumerate(
            zip(result.names, result.confidence, strict=True), start=1
        )
    ]
    size = [int(side) for side in result.labels.shape]
    return {"size": size, "seconds": round(seconds, 6), "ways": ways}


def is_the_querys_own(error: Exception) -> bool:
    """Whether another query may fare better: bad input, or an image too large for the memory."""
    return (
        isinstance(error, ValueError | OSError | MemoryError | torch.OutOfMemoryError)
        # torch's CPU allocator has no exception of its own.
        or (isinstance(error, RuntimeError) and "allocate memory" in str(error))
    )


def _named(error: Exception, path: Path) -> Exception:
    """Make sure that the error begins with the file it is about."""
    label = f"query '{path}': "
    if str(error).startswith(label):
        return error
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return ValueError(label + " ".join(text.removeprefix("query: ").split()))
