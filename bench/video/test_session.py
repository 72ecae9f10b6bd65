"""A video of 854 x 480 through a session: stages, frames a second, clicks, an edit of a support.

Label propagation on MobileNetV2, on one core, by the process's CPU time, which others do not
lengthen; its encoder is run by what is fastest here, as in a session that `fastfss video` opens.
Clicks are answered by the default model, likewise, and by label propagation. Weights and pixels
decide nothing of it but how many positions are looked at: those near the object, here a tenth of
the frame.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fastfss.video
from fastfss import create_model
from fastfss.engines import accelerate
from fastfss.methods import FewShotSegmenter
from fastfss.video import VideoSession, keep_freed_memory
from fastfss.video.rle import encode_mask
from fastfss.video.tracking import Stopwatch

HEIGHT, WIDTH, FRAMES = 480, 854, 24
STAGES = ("decode", "encode", "match", "enlarge", "labels", "pack")
# Most milliseconds: by the issue 12 frames a second on two cores at 480, 30 at 240; per further
# object and frame; a click with features at hand; a frame of a cached clip after an edit.
MOST_FRAME = {480: 2 * 1000 / 12, 240: 2 * 1000 / 30}
MOST_OBJECT, MOST_CLICK, MOST_FIRST_CLICK = 5.0, 60.0, 200.0


@cache
def model() -> FewShotSegmenter:
    torch.manual_seed(0)
    return accelerate(create_model("propagation").for_inference())


@cache
def click_model() -> FewShotSegmenter:
    return accelerate(create_model("default").for_inference())


def frames(objects: int = 1) -> tuple[list[np.ndarray], np.ndarray]:
    """Moving discs on noise, and the labels of the first frame."""
    generator = np.random.default_rng(0)
    background = generator.integers(0, 120, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    found, labels = [], np.zeros((HEIGHT, WIDTH), np.uint8)
    for t in range(FRAMES):
        frame = background.copy()
        for n in range(objects):
            centre = (120 + 60 * (n % 5), 150 + 130 * (n % 5) + 60 * (n // 5) + 4 * t)
            disc = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < (115 if objects == 1 else 45) ** 2
            frame[disc] = (250 - 20 * n, 20 * n, 200)
            if t == 0:
                labels[disc] = n + 1
        found.append(frame)
    return found, labels


def write_video(path: Path) -> None:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for frame in frames()[0]:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def opened(source: object, size: int, **options: Any) -> VideoSession:
    keep_freed_memory()
    torch.set_num_threads(1)
    session = fastfss.video.open(source, model(), size=size, cache_bytes=1 << 30, **options)
    session.tracker.watch = Stopwatch(time.process_time)
    return session


def milliseconds(call: Callable[[], object], rounds: int) -> list[float]:
    times = []
    for _ in range(rounds):
        started = time.process_time()
        call()
        times.append(1e3 * (time.process_time() - started))
    return times


def spread(times: list[float]) -> dict[str, float]:
    return {
        "p50_ms": round(statistics.median(times), 2),
        "p95_ms": round(float(np.percentile(times, 95)), 2),
    }


@pytest.mark.parametrize("size", [480, 240])
def test_propagation(benchmark: Any, size: int, tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4")
    session = opened(tmp_path / "clip.mp4", size)
    session.add_labels(0, frames()[1])
    run = session.propagate(0)
    next(run)  # what is allocated once
    times = milliseconds(lambda: next(run), FRAMES - 2)
    stages = session.tracker.watch.percentiles()
    found = {
        stage: {f"{p}_ms": round(1e3 * stages[stage][p], 2) for p in ("p50", "p95")}
        for stage in STAGES
    }
    largest = max(len(encode_mask(session.masks(n) == 1)) for n in session.frames)
    frame = spread(times)
    benchmark.pedantic(lambda: session.masks(3), rounds=3)
    fps = 1e3 / frame["p50_ms"]
    engine = model().encoder.engine
    benchmark.extra_info.update(
        stages=found,
        frame=frame,
        fps=round(fps, 1),
        mask_bytes=largest,
        encoder=getattr(engine, "chosen", "eager"),
    )
    print(f"\n{size} px: {frame}, {fps:.1f} frames a second on one core, {largest} bytes a mask")
    for stage, one in found.items():
        print(f"  {stage:8} {one}")
    assert frame["p50_ms"] <= MOST_FRAME[size]
    assert largest <= 20_000


def test_a_further_object(benchmark: Any) -> None:
    medians = {}
    for objects in (1, 10):
        pictures, labels = frames(10)
        session = opened(pictures, 480)
        session.add_labels(0, np.where(labels <= objects, labels, 0))
        list(session.propagate(0))  # so that features are at hand
        session.undo()
        run = session.propagate(0)
        medians[objects] = statistics.median(milliseconds(lambda r=run: next(r), FRAMES - 2))
    more = (medians[10] - medians[1]) / 9
    benchmark.pedantic(lambda: None, rounds=1)
    benchmark.extra_info.update(further_object_ms=round(more, 2), cached_frame_ms=medians[1])
    print(f"\na further object: {more:.2f} ms a frame; a cached frame {medians[1]:.1f} ms")
    assert more <= MOST_OBJECT


@pytest.mark.parametrize("answers", ["default", "propagation"])
@pytest.mark.parametrize("size", [480, 240])
def test_clicks(benchmark: Any, size: int, answers: str) -> None:
    pictures, labels = frames()
    session = opened(pictures, size, click_model=click_model() if answers == "default" else None)
    session.add_labels(0, labels)
    session.add_clicks(1, 1, [(150, 120)])
    places = iter(range(10_000))

    def first() -> object:
        number = 2 + next(places) % (FRAMES - 2)
        return session.add_clicks(number, 1, [(150 + 4 * number, 120)])

    def again() -> object:
        number = next(places) % 40
        return session.add_clicks(1, 1, [(130 + number, 100 + number)], replace=True)

    cold, warm = spread(milliseconds(first, FRAMES - 2)), spread(milliseconds(again, 20))
    benchmark.pedantic(again, rounds=3)
    benchmark.extra_info.update(first_click=cold, click=warm)
    print(f"\n{size} px, {answers}: first click on a frame {cold}, features cached {warm}")
    assert warm["p50_ms"] <= MOST_CLICK
    assert cold["p50_ms"] <= MOST_FIRST_CLICK


@pytest.mark.parametrize("size", [480, 240])
def test_an_edit_of_a_support_segments_a_cached_clip_anew(benchmark: Any, size: int) -> None:
    pictures, labels = frames()
    session = opened(pictures, size)
    session.add_labels(0, labels)
    list(session.propagate(0))
    session.add_clicks(0, 1, [(150, 120)])
    run = session.propagate(0)
    times = spread(milliseconds(lambda: next(run), FRAMES - 1))
    benchmark.pedantic(lambda: None, rounds=1)
    benchmark.extra_info.update(frame=times)
    print(f"\n{size} px: a cached frame after an edit {times}")
