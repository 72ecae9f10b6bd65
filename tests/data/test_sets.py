"""Sets of one's own and the index: what they hold, what is read again, what is refused."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fastfss.data.own_folder as own_folder
from fastfss.data import index as index_module
from fastfss.data.masks import IGNORED
from fastfss.data.sets import MaskSet, list_sets, open_set
from tests.data.own_sets import label_map, write_pair
from tests.shared import shared


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTFSS_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def maps(tmp_path: Path) -> Path:
    """Three images of odd sizes with classes 1, 2 and 3, of which 2 occurs twice."""
    root = tmp_path / "maps"
    for name, size, labels, mode in (
        ("a", (7, 9), (0, 1, 2), "L"),
        ("b", (5, 11), (2, IGNORED), "P"),
        ("c", (13, 3), (0, 0, 0), "RGB"),
    ):
        image = root / "images" / f"{name}.png"
        write_pair(image, root / "masks" / f"{name}.png", label_map(*size, labels), mode=mode)
    (root / "classes.txt").write_text("cat\ndining table\nsofa\n")
    return root


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Two classes in folders: 1-bit masks, and masks of 3 with 255 ignored."""
    root = tmp_path / "folders"
    for name, labels, mode in (("apple", (0, 1), "1"), ("screw", (0, 3, IGNORED), "L")):
        for n in (1, 2, 10):
            mask = label_map(6, 7 + n, labels)
            write_pair(root / name / f"{n}.jpg", root / name / f"{n}.png", mask, mode=mode, seed=n)
    return root


def test_label_maps_have_the_classes_of_their_list(maps: Path) -> None:
    images = open_set("folder", maps)
    assert images.name == "folder" and images.root == maps and images.ignores
    assert images.classes == {1: "cat", 2: "dining table", 3: "sofa"}
    assert [item.name for item in images.items] == ["a", "b", "c"]
    assert [dict(item.pixels) for item in images.items] == [{1: 18, 2: 18}, {2: 24}, {}]
    assert [item.size for item in images.items] == [(7, 9), (5, 11), (13, 3)]


def test_labels_and_masks_are_the_files_values(maps: Path) -> None:
    images = open_set("folder", maps)
    for number, (size, labels) in enumerate(
        [((7, 9), (0, 1, 2)), ((5, 11), (2, IGNORED)), ((13, 3), (0, 0, 0))]
    ):
        truth = torch.from_numpy(label_map(*size, labels))
        assert images.labels(number).equal(truth) and images.labels(number).dtype == torch.uint8
        for cls in images.classes:
            expected = torch.where(truth == IGNORED, IGNORED, (truth == cls).to(torch.uint8))
            assert images.mask(number, cls).equal(expected)
            assert images.mask(number, cls).dtype == torch.uint8


def test_images_are_uint8_rgb(maps: Path) -> None:
    images = open_set("folder", maps)
    photo = np.asarray(Image.open(maps / "images" / "b.png"))
    assert images.image(1).equal(torch.from_numpy(photo.transpose(2, 0, 1).copy()))


def test_the_index_lists_images_with_enough_pixels(maps: Path) -> None:
    images = open_set("folder", maps)
    assert images.index() == {1: [0], 2: [0, 1], 3: []}
    assert images.index(19) == {1: [], 2: [1], 3: []}
    assert images.index(24) == {1: [], 2: [1], 3: []}


def test_index_json_says_which_images_a_class_offers(maps: Path) -> None:
    without = open_set("folder", maps)
    (maps / "index.json").write_text(json.dumps({"dining table": ["b"], "cat": ["a"]}))
    listed = open_set("folder", maps)
    assert listed.index() == {1: [0], 2: [1], 3: []}
    assert [item.pixels for item in listed.items] == [item.pixels for item in without.items]
    assert listed.digest != without.digest


@pytest.mark.parametrize(
    ("lines", "classes"),
    [
        ("cat\r\n\r\ndining table\r\n", {1: "cat", 2: "dining table"}),
        ("0 null\n3 belt\n255 ignore\n40 dress shirt", {3: "belt", 40: "dress shirt"}),
        ("7\n9", {7: "7", 9: "9"}),
    ],
)
def test_class_lists_count_lines_or_state_numbers(
    tmp_path: Path, lines: str, classes: dict[int, str]
) -> None:
    (tmp_path / "classes.txt").write_bytes(lines.encode())
    assert own_folder.read_classes(tmp_path / "classes.txt") == classes


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("", "expected 1 to 254 classes, got none"),
        ("1 cat\ndog", "expected a number at the beginning of all lines or none, got 'dog'"),
        ("1 cat\n1 dog", "expected each number once, got 1"),
        ("300 cat", "expected 1 to 254 classes, got 300"),
    ],
)
def test_bad_class_lists_are_refused(tmp_path: Path, lines: str, message: str) -> None:
    path = tmp_path / "classes.txt"
    path.write_text(lines)
    with pytest.raises(ValueError, match=re.escape(f"'{path}': {message}")):
        own_folder.read_classes(path)


def test_class_folders_are_numbered_by_name(folders: Path) -> None:
    images = open_set("folder", folders)
    assert images.classes == {1: "apple", 2: "screw"}
    names = ["apple/1", "apple/10", "apple/2", "screw/1", "screw/10", "screw/2"]
    assert [item.name for item in images.items] == names
    assert images.index() == {1: [0, 1, 2], 2: [3, 4, 5]}
    assert images.ignores


def test_class_folders_read_their_object_whatever_its_label(folders: Path) -> None:
    images = open_set("folder", folders)
    truth = torch.from_numpy(label_map(6, 17, (0, 3, IGNORED)))
    assert images.mask(4, 2).equal(torch.where(truth == 3, 1, truth))
    assert images.labels(4).equal(torch.where(truth == 3, 2, truth))
    assert images.mask(4, 1).equal(torch.where(truth == 3, 0, truth))
    assert images.mask(0, 1).sum() == images.items[0].pixels[1]


@pytest.mark.parametrize(
    ("masks", "value", "ignores"),
    [
        ([(0, 255), (0, 255)], 255, False),
        ([(0, 1), (0, 1, 255)], 1, True),
        ([(0, 9), (0, 0)], 9, False),
        ([(0, 255), (0, 4)], 4, True),
    ],
)
def test_without_class_list_there_is_one_object(
    tmp_path: Path, masks: list[tuple[int, ...]], value: int, ignores: bool
) -> None:
    for n, labels in enumerate(masks):
        image = tmp_path / "images" / f"{n}.png"
        write_pair(image, tmp_path / "masks" / f"{n}.png", label_map(5, 8, labels))
    images = open_set("folder", tmp_path)
    assert images.classes == {1: "object"} and images.ignores == ignores
    for n, labels in enumerate(masks):
        truth = torch.from_numpy(label_map(5, 8, labels))
        ignored = (truth == IGNORED) & ignores
        assert (images.mask(n, 1) == 1).equal(truth == value)
        assert (images.labels(n) == IGNORED).equal(ignored)


def test_unknown_labels_are_named(maps: Path) -> None:
    write_pair(maps / "images" / "d.png", maps / "masks" / "d.png", label_map(4, 6, (0, 7)))
    message = f"mask '{maps / 'masks' / 'd.png'}': expected the classes of "
    with pytest.raises(ValueError, match=re.escape(message) + r".*\(1\.\.3\), got label 7"):
        open_set("folder", maps)


def test_several_labels_without_class_list_are_refused(maps: Path) -> None:
    (maps / "classes.txt").unlink()
    with pytest.raises(ValueError, match=r"masks: expected one label, or a classes\.txt .*a\.png"):
        open_set("folder", maps)


@pytest.mark.parametrize("broken", ["size", "mask", "image", "absent"])
def test_files_that_do_not_fit_are_named(maps: Path, broken: str) -> None:
    if broken == "size":
        Image.new("L", (8, 7)).save(maps / "masks" / "a.png")
    elif broken == "mask":
        (maps / "masks" / "a.png").write_bytes((maps / "masks" / "a.png").read_bytes()[:40])
    elif broken == "image":
        (maps / "images" / "a.png").write_text("no image")
    else:
        (maps / "masks" / "a.png").unlink()
    with pytest.raises(ValueError, match=r"a\.png"):
        open_set("folder", maps)


def test_images_of_one_name_are_refused(maps: Path) -> None:
    Image.new("RGB", (9, 7)).save(maps / "images" / "a.jpg")
    with pytest.raises(ValueError, match=r"a\.(jpg|png)"):
        open_set("folder", maps)


@pytest.mark.parametrize("listed", [{"dog": ["a"]}, {"cat": ["zebra"]}, ["a"], {"cat": "a"}])
def test_bad_index_json_is_refused(maps: Path, listed: object) -> None:
    (maps / "index.json").write_text(json.dumps(listed))
    with pytest.raises(ValueError, match=r"index\.json"):
        open_set("folder", maps)


def test_unknown_kinds_options_and_roots_are_named(tmp_path: Path) -> None:
    assert "folder" in list_sets()
    with pytest.raises(ValueError, match=r"kind: expected one of .*folder.*, got 'imagenet'"):
        open_set("imagenet", tmp_path)
    with pytest.raises(ValueError, match="options: expected one of progress, got 'colour'"):
        open_set("folder", tmp_path, colour=1)
    with pytest.raises(FileNotFoundError, match=r"root '.*none': expected the folder .*no such"):
        open_set("folder", tmp_path / "none")
    with pytest.raises(ValueError, match="images/ and masks/, or one folder a class"):
        open_set("folder", tmp_path)


def test_classes_outside_the_set_are_refused(maps: Path) -> None:
    with pytest.raises(ValueError, match=r"cls: expected a class of .* \(1\.\.3\), got 4"):
        open_set("folder", maps).mask(0, 4)


def test_more_classes_than_labels_have_masks_alone(tmp_path: Path) -> None:
    for n in range(255):
        folder = tmp_path / f"{n:03}"
        write_pair(folder / "1.jpg", folder / "1.png", label_map(3, 4, (0, 1)))
    images = open_set("folder", tmp_path)
    assert images.mask(254, 255).sum() == images.items[254].pixels[255]
    with pytest.raises(ValueError, match=r"class ids up to 254 for a label map.* got 255"):
        images.labels(0)


def _reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the masks that are read from now on."""
    reads: list[str] = []

    def read(image: Path, mask: Path) -> index_module.Scanned:
        reads.append(mask.name)
        return index_module.read_pair(image, mask)

    monkeypatch.setattr(own_folder, "read_pair", read)
    return reads


def test_masks_are_read_again_only_where_they_changed(
    maps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = _reads(monkeypatch)
    before = open_set("folder", maps)
    assert sorted(reads) == ["a.png", "b.png", "c.png"]
    reads.clear()
    again = open_set("folder", maps)
    assert reads == [] and again.digest == before.digest and again.items == before.items
    write_pair(maps / "images" / "b.png", maps / "masks" / "b.png", label_map(5, 12, (3, 0)))
    changed = open_set("folder", maps)
    assert reads == ["b.png"] and changed.digest != before.digest
    assert changed.items[1].pixels == {3: 24}


def test_a_change_of_time_alone_is_seen(maps: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_set("folder", maps)
    reads = _reads(monkeypatch)
    mask = maps / "masks" / "a.png"
    os.utime(mask, ns=(1, mask.stat().st_mtime_ns + 1))
    open_set("folder", maps)
    assert reads == ["a.png"]


def test_a_damaged_index_is_made_again(maps: Path) -> None:
    before = open_set("folder", maps)
    kept = maps / ".fastfss-folder.json"
    for content in ("{", '{"version": 1, "entries": {"images/a.png|masks/a.png": [1]}}', "[]"):
        kept.write_text(content)
        assert open_set("folder", maps).digest == before.digest


def test_a_read_only_root_keeps_its_index_in_the_users_cache(
    maps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps.chmod(0o555)
    try:
        before = open_set("folder", maps)
        assert not list(maps.glob(".fastfss*"))
        reads = _reads(monkeypatch)
        assert open_set("folder", maps).digest == before.digest and reads == []
    finally:
        maps.chmod(0o755)


def test_an_interrupted_scan_keeps_what_it_has_read(
    maps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "_AT_ONCE", 1)

    def stop(image: Path, mask: Path) -> index_module.Scanned:
        if mask.name == "b.png":
            raise KeyboardInterrupt
        return index_module.read_pair(image, mask)

    monkeypatch.setattr(own_folder, "read_pair", stop)
    with pytest.raises(KeyboardInterrupt):
        open_set("folder", maps)
    reads = _reads(monkeypatch)
    open_set("folder", maps)
    assert sorted(reads) == ["b.png", "c.png"]


def test_progress_reaches_the_number_of_masks(maps: Path) -> None:
    seen: list[tuple[int, int]] = []
    open_set("folder", maps, progress=lambda done, total: seen.append((done, total)))
    assert seen[0] == (0, 3) and seen[-1] == (3, 3)


@pytest.mark.parametrize(
    ("name", "items", "classes", "ignores"),
    [
        ("coco_mini", 86, 80, True),
        ("clothing", 861, 58, True),
        ("street", 143, 11, True),
        ("fss_small", 262, 8, False),
        ("salient", 857, 1, False),
    ],
)
def test_the_development_sets_open(name: str, items: int, classes: int, ignores: bool) -> None:
    images: MaskSet = open_set("folder", shared(f"data/{name}"))
    assert (len(images.items), len(images.classes)) == (items, classes)
    for number in (0, items - 1):
        item = images.items[number]
        assert images.image(number).shape[1:] == images.labels(number).shape == item.size
        for cls, pixels in item.pixels.items():
            assert int((images.mask(number, cls) == 1).sum()) == pixels


def test_listed_pairs_of_the_development_sets_are_the_index() -> None:
    root = shared("data/coco_mini")
    images = open_set("folder", root)
    listed = json.loads((root / "index.json").read_text())
    found = {
        images.classes[cls]: [images.items[number].name for number in members]
        for cls, members in images.index().items()
        if members
    }
    assert found == {name: sorted(members) for name, members in listed.items()}
