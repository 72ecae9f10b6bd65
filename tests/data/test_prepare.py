"""From official archives to sets: what comes out."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastfss.data.index import read_indices
from fastfss.data.pascal import read_image_set
from fastfss.data.prepare.coco import paint, prepare_coco
from fastfss.data.prepare.davis import prepare_davis
from fastfss.data.prepare.fss1000 import prepare_fss1000
from fastfss.data.prepare.instances import Annotated, Instance
from fastfss.data.prepare.pascal import prepare_pascal
from fastfss.data.sets import open_set
from fastfss.data.videos import open_davis
from tests.data.tiny_archives import (
    FSS_CLASSES,
    SBD_TRAIN,
    SBD_VAL,
    VOC_TRAIN,
    VOC_VAL,
    Coco,
    Pascal,
    davis_labels,
    fss_grey,
    make_coco,
    make_davis,
    make_fss1000,
    make_pascal,
)

# pycocotools' wrapper of an array is older than NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def pascal(tmp_path_factory: pytest.TempPathFactory) -> Pascal:
    return make_pascal(tmp_path_factory.mktemp("pascal") / "archives")


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Coco:
    return make_coco(tmp_path_factory.mktemp("coco") / "archives")


def test_pascal_merges_vocs_masks_over_sbds(pascal: Pascal, tmp_path: Path) -> None:
    voc = prepare_pascal(tmp_path, [pascal.folder])
    assert voc == tmp_path / "VOC2012"
    merged = {path.stem: path for path in (voc / "SegmentationClassAug").iterdir()}
    assert merged.keys() == pascal.masks.keys()
    for name, path in merged.items():
        np.testing.assert_array_equal(read_indices(path), pascal.masks[name])
        with Image.open(path) as opened:
            assert opened.mode == "L"
    held_out = set(VOC_VAL)
    trainaug = sorted({*VOC_TRAIN, *SBD_TRAIN, *SBD_VAL} - held_out)
    assert read_image_set(voc, "trainaug") == trainaug
    assert read_image_set(voc, "sbd_train") == list(SBD_TRAIN)


@pytest.mark.parametrize(
    ("part", "names"),
    [
        ("train", ["2007_000032", "2007_000039", "2008_000002", "2008_000008"]),
        ("val", list(VOC_VAL)),
        ("voc_train", list(VOC_TRAIN)),
        ("pfenet_train", ["2008_000008", "2007_000032", "2007_000039"]),
        ("denet_train", ["2007_000032", "2007_000039", "2008_000008"]),
        ("denet_val", ["2007_000033", "2007_000042", "2008_000002", "2007_000039"]),
    ],
)
def test_parts_of_pascal_have_the_published_order(
    pascal: Pascal, tmp_path: Path, part: str, names: list[str]
) -> None:
    prepare_pascal(tmp_path, [pascal.folder])
    images = open_set("pascal", tmp_path, part)
    assert [item.name for item in images.items] == names
    assert images.ignores and len(images.classes) == 20
    for number, item in enumerate(images.items):
        truth = pascal.masks[item.name]
        assert images.labels(number).equal(torch.from_numpy(truth))
        assert images.image(number).shape == (3, *truth.shape)
        counts = {int(n): int((truth == n).sum()) for n in np.unique(truth) if n not in (0, 255)}
        assert item.pixels == counts


def test_pascal_opens_from_every_published_place(pascal: Pascal, tmp_path: Path) -> None:
    voc = prepare_pascal(tmp_path, [pascal.folder])
    digest = open_set("pascal", tmp_path).digest
    for place in ("VOCdevkit/VOC2012", "VOC/VOCdevkit/VOC2012"):
        (tmp_path / place).parent.mkdir(parents=True)
        voc = voc.rename(tmp_path / place)
        assert open_set("pascal", tmp_path).digest == digest
        assert open_set("pascal", voc).digest == digest


def test_pascal_val_needs_no_sbd(pascal: Pascal, tmp_path: Path) -> None:
    voc = prepare_pascal(tmp_path, [pascal.folder])
    digest = open_set("pascal", tmp_path).digest
    (voc / "SegmentationClassAug").rename(tmp_path / "elsewhere")
    assert open_set("pascal", tmp_path).digest == digest
    with pytest.raises(FileNotFoundError, match=r"SegmentationClassAug': no such folder.*prepare"):
        open_set("pascal", tmp_path, "train")


def test_pascal_takes_lists_of_names(pascal: Pascal, tmp_path: Path) -> None:
    prepare_pascal(tmp_path, [pascal.folder])
    names = ["2008_000002", "2007_000033"]
    images = open_set("pascal", tmp_path, names=names)
    assert [item.name for item in images.items] == names
    path = tmp_path / "list.txt"
    path.write_text("".join(f"JPEGImages/{n}.jpg SegmentationClassAug/{n}.png\n" for n in names))
    assert open_set("pascal", tmp_path, names=path).digest == images.digest
    with pytest.raises(ValueError, match=r"part: expected one of train, val, .*got 'trainval'"):
        open_set("pascal", tmp_path, "trainval")
    with pytest.raises(FileNotFoundError, match=r"2007_000099\.jpg': no such file"):
        open_set("pascal", tmp_path, names=["2007_000099"])


@pytest.mark.parametrize("mode", ["RGB", "label"])
def test_pascal_refuses_masks_of_another_kind(pascal: Pascal, tmp_path: Path, mode: str) -> None:
    voc = prepare_pascal(tmp_path, [pascal.folder])
    mask = voc / "SegmentationClassAug" / "2007_000033.png"
    labels = pascal.masks["2007_000033"].copy()
    labels[5, 5] = 21 if mode == "label" else 0
    image = Image.fromarray(labels)
    (image.convert("RGB") if mode == "RGB" else image).save(mask)
    wanted = "mode RGB" if mode == "RGB" else r"classes 1\.\.20, got label 21"
    with pytest.raises(ValueError, match=rf"mask '{mask}': .*{wanted}"):
        open_set("pascal", tmp_path)


@pytest.mark.parametrize("crowds", [True, False])
def test_coco_paints_instances_in_order(coco: Coco, tmp_path: Path, crowds: bool) -> None:
    folder = prepare_coco(tmp_path, [coco.folder], crowds=crowds)
    assert folder == tmp_path / "COCO2014"
    for part in ("train", "val"):
        images = open_set("coco", tmp_path, part, crowds=crowds)
        assert [item.name for item in images.items] == sorted(coco.instances[part])
        assert not images.ignores and len(images.classes) == 80
        for number, item in enumerate(images.items):
            truth = torch.from_numpy(coco.painted(part, item.name, crowds))
            assert images.labels(number).equal(truth)
            assert images.image(number).shape == (3, *truth.shape)
        assert any(80 in item.pixels for item in images.items) == crowds


def test_coco_keeps_overlaps_apart_on_request(coco: Coco, tmp_path: Path) -> None:
    prepare_coco(tmp_path, [coco.folder], parts=["val"], overlaps=True)
    images = open_set("coco", tmp_path, overlaps=True)
    assert [item.name for item in images.items] == sorted(coco.instances["val"])
    for number, item in enumerate(images.items):
        for cls in images.classes:
            shapes = [mask for n, mask, _ in coco.instances["val"][item.name] if n == cls]
            truth = np.max(shapes, axis=0) if shapes else np.zeros(item.size, dtype=np.uint8)
            assert images.mask(number, cls).equal(torch.from_numpy(truth))
            assert item.pixels.get(cls, 0) == truth.sum()
        overlap = sum(images.mask(number, cls) for cls in item.pixels)
        assert int(overlap.max()) > 1
    with pytest.raises(FileNotFoundError, match=r"train2014\.jsonl.*--overlaps"):
        (tmp_path / "COCO2014" / "train2014").mkdir()
        open_set("coco", tmp_path, "train", overlaps=True)


def test_overlapping_masks_survive_a_copy_to_another_process(coco: Coco, tmp_path: Path) -> None:
    import pickle

    prepare_coco(tmp_path, [coco.folder], parts=["val"], overlaps=True)
    images = open_set("coco", tmp_path, overlaps=True)
    again = pickle.loads(pickle.dumps(images))
    assert again.mask(0, 80).equal(images.mask(0, 80))


@pytest.mark.parametrize(
    "damage", ["category", "image", "polygon", "cut", "no field", "no annotations"]
)
def test_bad_annotations_are_named(coco: Coco, tmp_path: Path, damage: str) -> None:
    folder = prepare_coco(tmp_path, [coco.folder], parts=["val"])
    for mask in (folder / "annotations" / "val2014").iterdir():
        mask.unlink()
    path = folder / "annotations" / "instances_val2014.json"
    content = json.loads(path.read_text())
    if damage == "category":
        content["annotations"][0]["category_id"] = 12
    elif damage == "image":
        content["annotations"][0]["image_id"] = 99
    elif damage == "polygon":
        content["annotations"][0]["segmentation"] = [[1.0, 2.0]]
    elif damage == "no field":
        del content["annotations"][0]["segmentation"]
    elif damage == "no annotations":
        del content["annotations"]
    text = json.dumps(content)
    path.write_text(text[: len(text) // 2] if damage == "cut" else text)
    with pytest.raises(ValueError, match=r"instances_val2014\.json'"):
        prepare_coco(tmp_path, [coco.folder], parts=["val"])


def test_coco_says_which_images_are_missing(coco: Coco, tmp_path: Path) -> None:
    folder = prepare_coco(tmp_path, [coco.folder], parts=["val"])
    (folder / "val2014" / "COCO_val2014_000000000003.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"val2014\.zip \(val: 1 images are missing.*003"):
        prepare_coco(tmp_path, [tmp_path], parts=["val"])
    prepare_coco(tmp_path, [coco.folder], parts=["val"])
    with pytest.raises(ValueError, match="parts: expected some of train, val, got 'test'"):
        prepare_coco(tmp_path, [coco.folder], parts=["test"])


def test_fss1000_takes_grey_levels_from_128(tmp_path: Path) -> None:
    archives = make_fss1000(tmp_path / "archives")
    folder = prepare_fss1000(tmp_path, [archives])
    assert folder == tmp_path / "FSS-1000"
    images = open_set("fss1000", tmp_path, "all")
    assert images.classes == dict(enumerate(FSS_CLASSES, start=1)) and not images.ignores
    names = [f"{name}/{n}" for name in FSS_CLASSES for n in (1, 10, 2, 3, 4, 5, 6, 7, 8, 9)]
    assert [item.name for item in images.items] == names
    for number, item in enumerate(images.items):
        name, _, n = item.name.partition("/")
        truth = torch.from_numpy(fss_grey(name, int(n)) >= 128)
        own = FSS_CLASSES.index(name) + 1
        assert images.mask(number, own).bool().equal(truth)
        assert item.pixels == {own: int(truth.sum())}
        assert images.mask(number, own % 3 + 1).sum() == 0
        assert images.labels(number).equal(truth.byte() * own)


def test_fss1000_wants_the_published_lists(tmp_path: Path) -> None:
    archives = make_fss1000(tmp_path / "archives")
    prepare_fss1000(tmp_path, [archives])
    with pytest.raises(FileNotFoundError, match=r"test\.txt': no such list; take it from HSNet"):
        open_set("fss1000", tmp_path, "test")
    (archives / "test.txt").write_bytes(b"zebra\r\nabacus\r\n")
    with pytest.raises(ValueError, match="expected the published 240 classes, got 2 names"):
        prepare_fss1000(tmp_path, [archives])
    with pytest.raises(ValueError, match="expected the published 240 classes, got 2 names"):
        open_set("fss1000", tmp_path, "test", lists=archives)
    own = open_set("fss1000", tmp_path, "test", lists=archives, own_lists=True)
    assert own.classes == {1: "abacus", 3: "zebra"} and len(own.items) == 20
    (archives / "test.txt").write_text("zebra\nyak\n")
    with pytest.raises(FileNotFoundError, match="yak': no such folder; the test list has it"):
        open_set("fss1000", tmp_path, "test", lists=archives, own_lists=True)


def test_fss1000_numbers_published_classes_by_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archives = make_fss1000(tmp_path / "archives")
    monkeypatch.setattr("fastfss.data.fss1000.check_class_list", lambda *_: None)
    monkeypatch.setattr("fastfss.data.prepare.fss1000.check_class_list", lambda *_: None)
    for file, name in (("trn", "zebra"), ("val", "abacus"), ("fss_test_set", FSS_CLASSES[1])):
        (archives / f"{file}.txt").write_bytes(f"{name}\r\n".encode())
    prepare_fss1000(tmp_path, [archives])
    classes = [open_set("fss1000", tmp_path, part).classes for part in ("train", "val", "test")]
    assert classes == [{1: "zebra"}, {521: "abacus"}, {761: FSS_CLASSES[1]}]
    test = open_set("fss1000", tmp_path, "test")
    assert test.mask(0, 761).sum() > 0
    with pytest.raises(ValueError, match="class ids up to 254 for a label map"):
        test.labels(0)


@pytest.mark.parametrize("first", ["DAVIS-data.zip", "DAVIS-2017-trainval-480p.zip", "both"])
def test_davis_holds_both_years(tmp_path: Path, first: str) -> None:
    archives = make_davis(tmp_path / "archives")
    if first != "both":
        (tmp_path / "first").mkdir()
        os.link(archives / first, tmp_path / "first" / first)
        prepare_davis(tmp_path, [tmp_path / "first"])
    prepare_davis(tmp_path, [archives])
    for year, part, name in ((2016, "train", "bear"), (2016, "val", "dog"), (2017, "val", "cat")):
        video = open_davis(tmp_path, part, year).videos[name]
        assert len(video.frames) == len(video.annotations) == 4
        for n in range(4):
            truth = davis_labels(name, n)
            truth = truth if year == 2017 else (truth > 0).astype(np.uint8)
            assert video.labels(n).equal(torch.from_numpy(truth))
            assert video.frame(n).shape == (3, *truth.shape)
        assert video.objects == ((1,) if year == 2016 else (1, 2))
    assert open_davis(tmp_path, "train", 2017).videos["bear"].objects == (1, 2)
    assert list(open_davis(tmp_path, "all").videos) == ["bear", "cat", "dog"]


def test_davis_names_what_is_missing(tmp_path: Path) -> None:
    archives = make_davis(tmp_path / "archives")
    folder = prepare_davis(tmp_path, [archives])
    for bad, message in (("test", "part: expected one of train"), ("all", "year: expected 2016")):
        with pytest.raises(ValueError, match=message):
            open_davis(tmp_path, bad, 2017 if bad == "test" else 2018)
    with pytest.raises(FileNotFoundError, match=r"2017/test-dev\.txt': no such list"):
        open_davis(tmp_path, "test-dev")
    mask = folder / "Annotations" / "480p" / "cat" / "00003.png"
    mask.unlink()
    video = open_davis(tmp_path).videos["cat"]
    with pytest.raises(ValueError, match=r"a frame of 'cat' with a mask \(3 of 4 frames have one"):
        video.labels(3)
    mask.with_name("00000.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"00000\.png': no mask of the first frame"):
        open_davis(tmp_path)
    with pytest.raises(FileNotFoundError, match="expected DAVIS/JPEGImages, found none"):
        open_davis(tmp_path / "archives")


def test_painting_takes_later_instances_over_earlier_ones() -> None:
    coder = pytest.importorskip("pycocotools.mask")
    first, second = np.zeros((2, 5, 7), dtype=np.uint8)
    first[:3], second[2:] = 1, 1
    instances = [
        Instance(cls, False, coder.encode(np.asfortranarray(mask))["counts"])
        for cls, mask in ((9, first), (4, second))
    ]
    painted = paint(Annotated("x", (5, 7), instances), crowds=True)
    np.testing.assert_array_equal(painted[:, 0], [9, 9, 4, 4, 4])
