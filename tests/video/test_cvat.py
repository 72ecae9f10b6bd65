"""CVAT's XML: what is written is read again, and what CVAT writes."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from fastfss.video.cvat import load_cvat
from tests.video.clips import clip, session


def test_masks_are_written_and_read_again(tmp_path: Path) -> None:
    one = session(3, 2)
    truth = clip(3, 2)[1]
    for frame in (0, 2):
        one.add_labels(frame, truth[frame])
    one.rename_object(1, "dog <&> 'é'")
    one.export(tmp_path / "a.xml", "cvat")
    again = session(3, 2)
    assert load_cvat(again, tmp_path / "a.xml") == [0, 2]
    assert list(again.objects.values()) == ["dog <&> 'é'", "object 2"]
    for frame in (0, 2):
        assert np.array_equal(again.masks(frame), truth[frame])
    root = ElementTree.parse(tmp_path / "a.xml").getroot()
    assert [label.findtext("name") for label in root.iter("label")] == list(one.objects.values())
    mask = next(root.iter("mask")).attrib
    runs = [int(n) for n in mask["rle"].split(",")]
    assert sum(runs) == int(mask["width"]) * int(mask["height"])
    assert sum(runs[1::2]) == (truth[0] == 1).sum()


def test_two_objects_of_one_name_stay_two(tmp_path: Path) -> None:
    one = session(1, 2)
    one.add_labels(0, clip(1, 2)[1][0])
    for number in (1, 2):
        one.rename_object(number, "ball")
    one.export(tmp_path / "a.xml", "cvat")
    again = session(1, 2)
    load_cvat(again, tmp_path / "a.xml")
    assert np.array_equal(again.masks(0), one.masks(0))


def written(path: Path, inside: str) -> Path:
    path.write_text(f"<annotations><version>1.1</version>{inside}</annotations>")
    return path


def test_tracks_polygons_and_a_last_run_that_is_left_out(tmp_path: Path) -> None:
    inside = """
    <track id="4" label="car">
      <mask frame="0" outside="0" rle="1, 2" left="10" top="20" width="2" height="2"/>
      <mask frame="1" outside="1" rle="0, 4" left="10" top="20" width="2" height="2"/>
      <box frame="1" outside="0" xtl="1" ytl="1" xbr="5" ybr="5"/>
    </track>
    <track id="5" label="car">
      <polygon frame="2" points="30,10;40,10;40,20;30,20"/>
    </track>"""
    one = session(3)
    assert load_cvat(one, written(tmp_path / "a.xml", inside)) == [0, 2]
    assert list(one.objects.values()) == ["car track 4", "car track 5"]
    assert np.argwhere(one.masks(0) == 1).tolist() == [[20, 11], [21, 10]]
    assert 90 <= (one.masks(2) == 2).sum() <= 121
    assert (one.masks(2) == 2)[11:19, 31:39].all()


@pytest.mark.parametrize(
    "inside",
    [
        "",
        '<image id="0" name="x"><mask label="a"/></image>',
        '<image id="zero" name="x"><mask label="a"/></image>',
        '<image id="0" name="x"><mask label="a" rle="0, 9" left="88" top="0" width="3" height="3"/>'
        "</image>",
        '<image id="0" name="x"><mask label="a" rle="0, 99" left="0" top="0" width="3" height="3"/>'
        "</image>",
        '<image id="0" name="x"><mask label="a" rle="-1, 10" left="0" top="0" width="3" '
        'height="3"/></image>',
        '<image id="0" name="x"><polygon label="a" points="1,2;3"/></image>',
        '<image id="99" name="x"><polygon label="a" points="1,2;3,4;5,9"/></image>',
    ],
)
def test_other_files_are_refused_and_change_nothing(tmp_path: Path, inside: str) -> None:
    one = session(2)
    with pytest.raises(ValueError, match=r"a\.xml"):
        load_cvat(one, written(tmp_path / "a.xml", inside))
    assert not one.history


@pytest.mark.parametrize(
    "text", ["", "<a/>", "{}", '<!DOCTYPE a [<!ENTITY b "c">]><annotations>&b;</annotations>']
)
def test_what_is_no_xml_of_cvat_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.xml").write_text(text)
    with pytest.raises(ValueError, match=r"a\.xml"):
        load_cvat(session(1), tmp_path / "a.xml")
