from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastfss.data import open_davis
from fastfss.protocols.davis import evaluate_davis, figures
from fastfss.protocols.video_metrics import ObjectScore, score_frame
from fastfss.video import VideoSession
from tests.video.clips import clip, model, session


def write_davis(root: Path, lengths: dict[str, int], objects: int = 2) -> None:
    """Sequences of `clip`, as DAVIS's folders have them."""
    for seed, (name, count) in enumerate(lengths.items()):
        frames, masks = clip(count, objects, seed=seed)
        for folder in ("JPEGImages", "Annotations"):
            (root / folder / "480p" / name).mkdir(parents=True)
        for n, (frame, mask) in enumerate(zip(frames, masks, strict=True)):
            path = root / "JPEGImages" / "480p" / name / f"{n:05d}.jpg"
            Image.fromarray(frame).save(path, quality=95)
            image = Image.fromarray(mask)
            image.putpalette(list(range(256)) * 3)
            image.save(root / "Annotations" / "480p" / name / f"{n:05d}.png")


def test_the_first_and_the_last_frame_do_not_count(tmp_path: Path) -> None:
    write_davis(tmp_path, {"a": 6, "b": 4})
    videos = open_davis(tmp_path, "all").videos
    steps: list[int] = []
    report = evaluate_davis(model(), videos, size=120, progress=lambda: steps.append(1))
    assert [(o.sequence, o.object, len(o.regions)) for o in report.objects] == [
        *(("a", 1, 4), ("a", 2, 4), ("b", 1, 2), ("b", 2, 2)),
    ]
    assert report.frames == len(steps) == 4 + 2
    assert report.figures["J"] > 0.7
    assert report.fps > 0


def test_the_figures_are_those_of_the_sessions_masks(tmp_path: Path) -> None:
    write_davis(tmp_path, {"a": 5}, objects=1)
    video = open_davis(tmp_path, "all").videos["a"]
    report = evaluate_davis(model(), {"a": video}, size=120)
    frames = [video.frame(n).permute(1, 2, 0).numpy() for n in range(5)]
    one = session(1)
    one = VideoSession(type(one.source)(frames, "a"), model(), size=120)
    one.add_labels(0, video.labels(0).numpy())
    wanted = [
        score_frame(result.labels, video.labels(result.frame).numpy(), [1])[1]
        for result in one.propagate(0, last=3)
    ]
    assert list(zip(report.objects[0].regions, report.objects[0].contours, strict=True)) == wanted


def test_objects_count_alike_whatever_their_number_of_frames() -> None:
    objects = [
        ObjectScore("a", 1, (1.0,) * 9, (1.0,) * 9),
        ObjectScore("b", 1, (0.0, 0.6), (0.2, 0.2)),
    ]
    found = figures(objects)
    assert found["J"] == pytest.approx((1 + 0.3) / 2)
    assert found["F"] == pytest.approx((1 + 0.2) / 2)
    assert found["J&F"] == pytest.approx((found["J"] + found["F"]) / 2)
    assert found["J_recall"] == pytest.approx((1 + 0.5) / 2)
    assert not math.isnan(found["J_decay"])
    with pytest.raises(ValueError, match="objects: expected at least one"):
        figures([])


def test_a_sequence_that_is_too_short_is_named(tmp_path: Path) -> None:
    write_davis(tmp_path, {"short": 2})
    with pytest.raises(ValueError, match="sequence 'short': expected objects, and masks of three"):
        evaluate_davis(model(), open_davis(tmp_path, "all").videos)


def test_frames_without_a_mask_do_not_count(tmp_path: Path) -> None:
    write_davis(tmp_path, {"a": 6})
    (tmp_path / "Annotations" / "480p" / "a" / "00002.png").unlink()
    report = evaluate_davis(model(), open_davis(tmp_path, "all").videos, size=120)
    assert len(report.objects[0].regions) == 3
    assert np.isfinite(list(report.figures.values())).all()
