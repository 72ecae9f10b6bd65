from __future__ import annotations

import csv
import json
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from fastfss.video import VideoSession
from fastfss.video.coco import load_coco
from fastfss.video.export import voc_palette
from fastfss.video.label_files import read_labels
from tests.video.clips import HEIGHT, WIDTH, clip, session


@pytest.fixture(scope="module")
def done() -> VideoSession:
    one = session(4, 2)
    one.add_labels(0, clip(4, 2)[1][0])
    one.rename_object(2, "green")
    list(one.propagate(0))
    return one


def test_davis_pngs_hold_the_labels_and_vocs_colours(done: VideoSession, tmp_path: Path) -> None:
    done.export(tmp_path / "masks", "davis")
    assert sorted(path.name for path in (tmp_path / "masks").iterdir()) == [
        f"{n:05d}.png" for n in range(4)
    ]
    with Image.open(tmp_path / "masks" / "00002.png") as image:
        assert image.mode == "P"
        assert np.array_equal(np.array(image), done.masks(2))
        assert image.getpalette()[:15] == [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0, 0, 0, 128]
    again = session(4, 2)
    labels = read_labels(tmp_path / "masks" / "00002.png", (HEIGHT, WIDTH))
    again.add_labels(2, labels.numpy())
    assert np.array_equal(again.masks(2), done.masks(2))


def test_the_palette_is_vocs() -> None:
    colours = np.array(voc_palette()).reshape(256, 3).tolist()
    assert colours[8] == [64, 0, 0] and colours[21] == [128, 64, 128]
    assert colours[255] == [224, 224, 192]


def test_binary_and_cutout_pngs(done: VideoSession, tmp_path: Path) -> None:
    done.export(tmp_path / "b", "binary")
    done.export(tmp_path / "c", "cutout")
    with Image.open(tmp_path / "b" / "2" / "00001.png") as image:
        assert np.array_equal(np.array(image) > 0, done.masks(1) == 2)
    with Image.open(tmp_path / "c" / "1" / "00003.png") as image:
        pixels = np.array(image)
    assert np.array_equal(pixels[..., 3] > 0, done.masks(3) == 1)
    assert np.array_equal(pixels[..., :3], clip(4, 2)[0][3])


def test_coco_json_comes_back_and_pycocotools_reads_it(done: VideoSession, tmp_path: Path) -> None:
    plain = json.loads(done.export(tmp_path / "a.json", "coco").read_text())
    assert len(plain["images"]) == 4
    assert {c["id"]: c["name"] for c in plain["categories"]} == {1: "object 1", 2: "green"}
    for one in plain["annotations"]:
        mask = coco.decode(one["segmentation"]) > 0
        assert np.array_equal(mask, done.masks(one["image_id"] - 1) == one["track_id"])
        assert one["area"] == mask.sum() == int(coco.area(one["segmentation"]))
        assert one["bbox"] == coco.toBbox(one["segmentation"]).tolist()
    again = session(4, 2)
    assert load_coco(again, tmp_path / "a.json") == [0, 1, 2, 3]
    assert dict(again.objects) == {1: "object 1", 2: "green"}
    for frame in range(4):
        assert np.array_equal(again.masks(frame), done.masks(frame))


def test_youtube_vis_json(done: VideoSession, tmp_path: Path) -> None:
    plain = json.loads(done.export(tmp_path / "v.json", "ytvis").read_text())
    assert plain["videos"][0]["length"] == 4
    for one in plain["annotations"]:
        assert len(one["segmentations"]) == len(one["bboxes"]) == len(one["areas"]) == 4
        for frame, rle in enumerate(one["segmentations"]):
            assert np.array_equal(coco.decode(rle) > 0, done.masks(frame) == one["category_id"])
    again = session(4, 2)
    load_coco(again, tmp_path / "v.json")
    assert np.array_equal(again.masks(3), done.masks(3))


def test_the_overlay_is_a_video_of_all_frames(done: VideoSession, tmp_path: Path) -> None:
    done.export(tmp_path / "o.mp4", "overlay")
    with av.open(str(tmp_path / "o.mp4")) as container:
        frames = [
            f.to_ndarray(format="rgb24") for f in container.decode(container.streams.video[0])
        ]
    assert len(frames) == 4 and frames[0].shape == (HEIGHT, WIDTH, 3)
    assert not np.allclose(frames[1][done.masks(1) == 1], clip(4, 2)[0][1][done.masks(1) == 1])


def test_a_table_of_areas_and_boxes(done: VideoSession, tmp_path: Path) -> None:
    with done.export(tmp_path / "t.csv", "csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    assert int(rows[1]["area"]) == (done.masks(0) == 2).sum() and rows[1]["name"] == "green"


def test_what_cannot_be_exported_is_named(done: VideoSession, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="format: expected one of davis"):
        done.export(tmp_path, "gif")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"path: expected a \.mp4 file"):
        done.export(tmp_path / "o.avi", "overlay")
    with pytest.raises(ValueError, match="export: expected a session with masks, got none"):
        session().export(tmp_path, "davis")


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        ("[]", "expected images or videos, annotations and categories"),
        ("{", "expected JSON"),
        ({"images": [], "annotations": []}, "expected frames of the video"),
        (
            {"images": [{"id": 1, "file_name": "absent.jpg"}], "annotations": []},
            "expected frames of the video",
        ),
        (
            {
                "images": [{"id": 1, "file_name": "00000.jpg"}],
                "annotations": [{"image_id": 1, "category_id": 1, "segmentation": [[1, 2]]}],
            },
            "annotations.0. segmentation: expected COCO polygons",
        ),
        (
            {
                "images": [{"id": 1, "file_name": "00000.jpg"}],
                "annotations": [{"image_id": 1, "category_id": 1, "segmentation": {"size": [1]}}],
            },
            "annotations.0. segmentation: expected COCO run lengths",
        ),
        (
            {
                "images": [{"id": 1, "file_name": "00000.jpg"}],
                "annotations": [
                    {
                        "image_id": 1,
                        "category_id": 1,
                        "segmentation": {"size": [1, 1], "counts": [1]},
                    }
                ],
            },
            "annotations.0. segmentation: expected 60 x 90",
        ),
    ],
)
def test_other_json_is_refused(tmp_path: Path, plain: object, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(plain if isinstance(plain, str) else json.dumps(plain))
    one = session(2)
    with pytest.raises(ValueError, match=message) as caught:
        load_coco(one, path)
    assert "a.json" in str(caught.value)
    assert not one.history


def test_polygons_are_read(tmp_path: Path) -> None:
    square = [10, 20, 40, 20, 40, 50, 10, 50]
    plain = {
        "images": [{"id": 5, "file_name": "some/where/00001.jpg"}],
        "categories": [{"id": 3, "name": "tile"}],
        "annotations": [{"image_id": 5, "category_id": 3, "segmentation": [square]}],
    }
    path = tmp_path / "a.json"
    path.write_text(json.dumps(plain))
    one = session(2)
    assert load_coco(one, path) == [1]
    assert dict(one.objects) == {1: "tile"}
    assert (one.masks(1) == 1).sum() == 30 * 30


def test_masks_that_are_no_label_maps_are_refused(tmp_path: Path) -> None:
    size = (8, 9)
    colours = np.zeros((8, 9, 3), np.uint8)
    colours[2:5, 2:5] = (250, 3, 9)
    colours[5:, 5:] = (3, 250, 9)
    Image.fromarray(colours).save(tmp_path / "rgb.png")
    soft = np.zeros(size, np.uint8)
    soft[2:7, 2:7] = 255
    soft[2, 2:7] = (40, 90, 120, 160, 220)
    Image.fromarray(soft).save(tmp_path / "soft.png")
    Image.fromarray(np.zeros(size, np.uint8)).save(tmp_path / "empty.png")
    for name, message in [
        ("rgb.png", "rgb.png': expected"),
        ("soft.png", "soft.png': expected a number an object.*soft edges"),
        ("empty.png", "empty.png': expected at least one object"),
        ("absent.png", "no such file"),
    ]:
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            read_labels(tmp_path / name, size)
    with pytest.raises(ValueError, match="8 rows x 9 columns"):
        read_labels(tmp_path / "soft.png", (9, 9))
    Image.fromarray((soft == 255).astype(np.uint8) * 255).save(tmp_path / "binary.png")
    assert set(read_labels(tmp_path / "binary.png", size).unique().tolist()) == {0, 1}
