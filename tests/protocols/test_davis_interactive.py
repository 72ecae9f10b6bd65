from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from fastfss.data import open_davis
from fastfss.protocols.davis_interactive import (
    InteractiveReport,
    Sample,
    evaluate_interactive,
    first_scribbles,
    report_of,
    tell,
)
from fastfss.protocols.scribbles import (
    Scribble,
    bezier,
    correcting_scribbles,
    longest_path,
    read_scribbles,
)
from tests.protocols.test_davis import write_davis
from tests.video.clips import HEIGHT, WIDTH, clip, iou, model, session


def test_scribbles_lie_on_the_error_and_say_whose_it_is() -> None:
    truth = np.zeros((80, 120), np.uint8)
    truth[30:45, 10:90] = 1
    labels = np.zeros_like(truth)
    labels[30:45, 10:40] = 1  # a half is missing
    labels[65:78, 90:118] = 1  # and a patch too many
    drawn = correcting_scribbles(labels, truth, [1], frame=4)
    assert sorted(one.object for one in drawn) == [0, 1]
    for one in drawn:
        assert one.frame == 4 and one.path.shape == (1000, 2)
        for x, y in one.pixels((80, 120)):
            assert truth[int(y), int(x)] == one.object
            assert labels[int(y), int(x)] != one.object
    long = next(one for one in drawn if one.object == 1)
    assert np.ptp(long.path[:, 0]) * 120 > 25, "along the region, not a dot in it"


def test_nothing_is_drawn_where_all_is_right_or_the_error_is_a_speck() -> None:
    truth = clip(1)[1][0]
    assert correcting_scribbles(truth, truth, [1], 0) == []
    speck = truth.copy()
    speck[0, 0] = 1
    assert correcting_scribbles(speck, truth, [1], 0) == []


def test_the_longest_path_of_a_tree() -> None:
    pixels = np.zeros((20, 30), bool)
    pixels[10, 2:28] = True
    pixels[5:10, 15] = True  # a short branch
    path = longest_path(pixels)
    assert len(path) == 26
    assert {tuple(path[0]), tuple(path[-1])} == {(10, 2), (10, 27)}
    assert np.abs(np.diff(path, axis=0)).max() == 1
    assert len(longest_path(np.zeros((4, 4), bool))) == 0


def test_bezier_curves_are_those_of_the_formula() -> None:
    points = np.array([[0.0, 0.0], [1.0, 3.0], [4.0, 1.0]])
    curve = bezier(points, 5)
    for t, found in zip(np.linspace(0, 1, 5), curve, strict=True):
        wanted = sum(math.comb(2, k) * t**k * (1 - t) ** (2 - k) * p for k, p in enumerate(points))
        np.testing.assert_allclose(found, wanted, atol=1e-12)
    long = bezier(np.random.default_rng(0).random((2000, 2)), 50)
    assert np.isfinite(long).all()


def test_files_of_davis_are_read(tmp_path: Path) -> None:
    line = {"path": [[0.1, 0.5], [0.2, 0.5]], "object_id": 2, "start_time": 0, "end_time": 9}
    plain = {"sequence": "dog", "annotated_frame": 1, "scribbles": [[], [line], []]}
    path = tmp_path / "001.json"
    path.write_text(json.dumps(plain))
    (one,) = read_scribbles(path)
    assert (one.frame, one.object) == (1, 2)
    assert one.pixels((10, 20)) == [(2.0, 5.0), (4.0, 5.0)]
    for bad in ("{}", "[", '{"scribbles": [[{"path": [[1]], "object_id": 1}]]}'):
        path.write_text(bad)
        with pytest.raises(ValueError, match=r"001.json': expected scribbles"):
            read_scribbles(path)


def test_scribbles_are_the_objects_own_and_not_the_others() -> None:
    truth = clip(1, 2)[1]
    one = session(1, 2)
    one.add_labels(0, truth[0])
    where = np.argwhere(truth[0] == 2).mean(0)
    path = np.array([[where[1] / WIDTH, where[0] / HEIGHT]] * 2)
    tell(one, [Scribble(0, 1, path)])
    y, x = int(where[0]), int(where[1])
    assert one.masks(0)[y, x] == 1
    said = one.state.annotations
    assert said[0, 2].marks[-1].positive is False and said[0, 1].marks[-1].positive is True


def test_rounds_get_better_and_are_timed(tmp_path: Path) -> None:
    write_davis(tmp_path, {"a": 5, "b": 4}, objects=1)
    videos = open_davis(tmp_path, "all").videos
    report = evaluate_interactive(model(), videos, rounds=3, size=120)
    assert [sample.sequence for sample in report.samples] == ["a", "b"]
    for sample in report.samples:
        assert 1 <= len(sample.scores) == len(sample.seconds) <= 3
        assert sample.scores[-1] >= sample.scores[0] - 0.02
    assert report.curve[-1][1] > 0.6
    assert report.available == 8 * 30
    assert 0 < report.auc <= 1 and report.at() == pytest.approx(report.curve[-1][1], abs=0.2)


def test_area_and_height_of_the_curve() -> None:
    first = Sample("a", 1, (0.5, 1.0), (60.0, 60.0))
    report = report_of([first])
    # (0, 0), (60, 0.5), (120, 1), (240, 1)
    assert report.available == 240
    assert report.auc == pytest.approx((60 * 0.25 + 60 * 0.75 + 120) / 240)
    assert report.at(60) == pytest.approx(0.5) and report.at(30) == pytest.approx(0.25)
    both = report_of([first, Sample("b", 3, (0.7,), (20.0,))])
    assert both.curve == ((40.0, pytest.approx(0.6)), (70.0, pytest.approx(0.85)))
    assert both.available == 480
    assert isinstance(both, InteractiveReport) and both.to_dict()["at60"] == both.at()
    with pytest.raises(ValueError, match="samples: expected at least one"):
        report_of([])


def test_simulated_first_scribbles_find_the_objects(tmp_path: Path) -> None:
    write_davis(tmp_path, {"a": 3}, objects=1)
    (drawn,) = first_scribbles(open_davis(tmp_path, "all").videos["a"], None)
    one = session(1)
    one.add_object()
    tell(one, drawn)
    assert iou(one.masks(0), clip(1)[1][0]) > 0.5
