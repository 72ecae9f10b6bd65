from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastfss.video
from fastfss.video import MemoryConfig, VideoSession
from fastfss.video.session import Direction
from tests.video.clips import clip, model, session


def saved(folder: Path) -> VideoSession:
    """A session with a history, and its folder."""
    truth = clip(6)[1]
    one = session(6)
    one.add_labels(0, truth[0])
    image, mask = clip(1, seed=3)
    one.add_support(image[0], {1: mask[0]}, name="photo")
    list(one.propagate(0, last=4))
    one.add_clicks(2, 1, [(24, 20)])
    one.add_object("second")
    one.undo()
    one.save(folder)
    return one


def opened(folder: Path, count: int = 6) -> VideoSession:
    return session(count, workspace=folder)


def test_a_session_goes_on_where_it_was_saved(tmp_path: Path) -> None:
    one = saved(tmp_path / "work")
    again = opened(tmp_path / "work")
    assert again.history == one.history
    assert (again.seq, again.frames, again.objects) == (one.seq, one.frames, one.objects)
    for other in (again, one):
        assert other.redo().kind == "object"
        for _ in range(2):
            other.undo()
    for frame in one.frames:
        assert np.array_equal(again.masks(frame), one.masks(frame))
    again.rebuild()
    for frame in one.frames:
        assert np.array_equal(again.masks(frame), one.masks(frame))
    assert again.step(5).labels.any()


def test_a_folder_without_a_session_begins_one(tmp_path: Path) -> None:
    one = opened(tmp_path / "new")
    assert not one.history and not (tmp_path / "new").exists()


def test_a_propagation_that_was_cut_off_ends_with_what_is_there(tmp_path: Path) -> None:
    one = session(6)
    one.add_labels(0, clip(6)[1][0])
    run = one.propagate(0)
    next(run), next(run)
    one.save(tmp_path)
    again = opened(tmp_path)
    assert again.frames == (0, 1, 2)
    assert again.history[-1].data["done"] == 2
    assert [result.frame for result in again.propagate(2)] == [3, 4, 5]


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("method", ["propagation", "ssp"])
def test_one_that_was_cut_off_goes_on_as_if_it_never_had_been(
    tmp_path: Path, method: str, direction: Direction
) -> None:
    memory = MemoryConfig(recent=2, confident=2, every=1, confidence=0.1)
    options: dict[str, Any] = {"memory": memory, "model": model(method)}
    start = 0 if direction == "forward" else 7
    whole = session(8, **options)
    whole.add_labels(start, clip(8)[1][start])
    list(whole.propagate(start, direction=direction))
    one = session(8, **options)
    one.add_labels(start, clip(8)[1][start])
    run = one.propagate(start, direction=direction)
    middle = [next(run).frame for _ in range(3)][-1]
    one.save(tmp_path)
    run.close()
    again = session(8, workspace=tmp_path, **options)
    for other in (one, again):
        list(other.propagate(middle, direction=direction))
        for frame in whole.frames:
            assert np.array_equal(other.masks(frame), whole.masks(frame))
        first, second = [event for event in other.history if event.kind == "propagate"]
        assert second.data["continues"] == first.seq
    again.rebuild()
    for frame in whole.frames:
        assert np.array_equal(again.masks(frame), whole.masks(frame))
    # After a change of its masks, a frame's masks are what counts.
    one.add_clicks(middle, 1, [(24, 20)])
    one.propagate(middle, direction=direction).close()
    assert [event for event in one.history if event.kind == "propagate"][-1].data.keys() == {
        *("direction", "first", "last")
    }


def test_another_video_or_model_is_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    with pytest.raises(ValueError, match=r"session.json': expected a session with video"):
        opened(tmp_path, count=5)
    with pytest.raises(ValueError, match=r"expected a session with model"):
        session(6, workspace=tmp_path, model=model("ssp"))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("session.json", lambda text: text[:20], "expected a session of fastfss-video-1"),
        ("session.json", lambda text: "[]", "expected a session of"),
        ("events.jsonl", lambda text: text.replace('"mask"', '"bask"', 1), "line 1 of the log"),
        ("events.jsonl", lambda text: text.replace("support-2", "../../x"), "names of images"),
        ("results.jsonl", lambda text: text.replace("[0,1,", '[0,1,"AA",', 1), "line 1"),
        ("results.jsonl", lambda text: "x" + text, "line 1"),
        ("trails.npz", lambda text: text[:200], r"trails.npz': expected what a session wrote"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, change: object, message: str) -> None:
    saved(tmp_path)
    path = tmp_path / name
    text = path.read_text(encoding="latin-1")
    path.write_text(change(text), encoding="latin-1")  # type: ignore[operator]
    assert path.read_text(encoding="latin-1") != text
    with pytest.raises(ValueError, match=message) as caught:
        opened(tmp_path)
    assert name in str(caught.value)


def test_masks_of_events_that_were_not_written_are_left_out(tmp_path: Path) -> None:
    saved(tmp_path)
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    (tmp_path / "events.jsonl").write_text("\n".join(lines[:1]) + "\n")
    again = opened(tmp_path)
    assert again.seq == 1 and again.frames == (0,)


def test_the_log_is_lines_of_json(tmp_path: Path) -> None:
    saved(tmp_path)
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [event["kind"] for event in events] == [
        *("mask", "support", "propagate", "stop", "annotate", "object", "undo"),
    ]
    assert (tmp_path / "images" / "support-2.png").exists()
    assert fastfss.video.open(clip(6)[0], model(), size=120, workspace=tmp_path).frames
