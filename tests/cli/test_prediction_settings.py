from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fastfss.cli.prediction_settings import PredictionSettings, Way, differences


@pytest.fixture
def settings(tmp_path: Path) -> PredictionSettings:
    for name in ("1.jpg", "1.png", "2.jpg", "2.png", "weights", "task"):
        (tmp_path / name).write_text(name)
    shots = ((tmp_path / "1.jpg", tmp_path / "1.png"),)
    ways = (Way("cow", shots), Way(task=tmp_path / "task"))
    return PredictionSettings(
        "ssp", "resnet18", ("layer2", "layer3"), str(tmp_path / "weights"), 320, {}, None, ways
    )


def test_record_is_json_and_equal_to_itself(settings):
    record = settings.record()
    assert json.loads(json.dumps(record)) == record
    assert differences(record, json.loads(json.dumps(record))) == []


def test_files_are_known_by_content_not_by_place(settings, tmp_path):
    before = settings.record()
    (tmp_path / "weights").rename(tmp_path / "moved")
    moved = replace(settings, weights=str(tmp_path / "moved"))
    assert differences(before, moved.record()) == []
    (tmp_path / "moved").write_text("other")
    assert differences(before, moved.record()) == ["weights is another file"]


def test_each_changed_setting_is_named(settings, tmp_path):
    before = settings.record()
    (tmp_path / "1.png").write_text("other")
    changed = replace(
        settings,
        method="mlc",
        layers=None,
        size=480,
        options={"refine": False},
        value=3,
        weights="imagenet",
    )
    assert differences(before, changed.record()) == [
        "method was ssp, now mlc",
        "layers was layer2,layer3, now not given",
        "weights is another file",
        "size was 320, now 480",
        "refine was not given, now False",
        "value was not given, now 3",
        "mask is another file",
    ]


def test_changed_ways_are_named(settings, tmp_path):
    before = settings.record()
    one, two = settings.ways
    second_shot = (tmp_path / "2.jpg", tmp_path / "2.png")
    cases = {
        "name was cow, now dog": (replace(one, name="dog"), two),
        "shots was 1 of them, now 2 of them": (replace(one, shots=(*one.shots, second_shot)), two),
        "ways was 2 of them, now 1 of them": (one,),
        "image is another file": (replace(one, shots=((second_shot[0], one.shots[0][1]),)), two),
    }
    for difference, ways in cases.items():
        assert differences(before, replace(settings, ways=ways).record()) == [difference]
    swapped = replace(settings, ways=(two, one)).record()
    assert differences(before, swapped)


@pytest.mark.parametrize("name", ["weights", "1.jpg", "1.png", "task"])
def test_missing_file_is_named(settings, tmp_path, name):
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name}': no such file$"):
        settings.record()
    (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=f"{name}': expected a file, got a folder$"):
        settings.record()


def test_settings_left_to_the_method_are_recorded_as_such(settings):
    record = replace(settings, weights=None, layers=None, ways=()).record()
    assert (record["weights"], record["layers"], record["ways"]) == (None, None, [])
