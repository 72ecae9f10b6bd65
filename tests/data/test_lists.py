"""Published lists: what is read, what is made again, what is refused."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastfss.data.list_digests import IMAGES_PER_CLASS, PUBLISHED_LISTS
from fastfss.data.lists import (
    HSNetList,
    hsnet_classes,
    lines_digest,
    make_hsnet_list,
    matches,
    read_hsnet_list,
    read_hsnet_lists,
    read_names,
    read_panet_lists,
    read_pfenet_list,
)
from fastfss.data.sets import Item, MaskSet


class Counted(MaskSet):
    """A set of numbers of pixels without images."""

    ignores = False

    def __init__(self, name: str, classes: int, pixels: dict[str, dict[int, int]]) -> None:
        self.name, self.root = name, Path("nowhere")
        self.classes = {number: f"class {number}" for number in range(1, classes + 1)}
        self.items = [Item(one, Path(one), Path(one), counts) for one, counts in pixels.items()]

    def image(self, number: int) -> Tensor:
        return torch.zeros(0)

    def labels(self, number: int) -> Tensor:
        return torch.zeros(0)


def write_coco(path: Path, lists: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(lists))
    return path


@pytest.mark.parametrize("kind", ["pascal", "coco"])
def test_counts_per_class_sum_to_the_lists(kind: str) -> None:
    for part in ("trn", "val"):
        counts = IMAGES_PER_CLASS[kind, part]
        for fold in range(4):
            total = sum(counts[number - 1] for number in hsnet_classes(kind, part, fold))  # type: ignore[arg-type]
            assert total == PUBLISHED_LISTS[f"hsnet/{kind}/{part}/fold{fold}"].lines


def test_folds_of_a_kind_hold_out_every_class_once() -> None:
    for kind, count in (("pascal", 20), ("coco", 80)):
        held_out = [number for fold in range(4) for number in hsnet_classes(kind, "val", fold)]  # type: ignore[arg-type]
        assert sorted(held_out) == list(range(1, count + 1))
    assert hsnet_classes("coco", "val", 1)[:3] == (2, 6, 10)
    assert set(hsnet_classes("coco", "trn", 1)) == set(range(1, 81)) - set(
        hsnet_classes("coco", "val", 1)
    )


def test_pascal_lists_keep_the_files_order(tmp_path: Path) -> None:
    path = tmp_path / "fold1.txt"
    path.write_bytes(b"2007_000042__10\r\n2007_000032__06\r\n2007_000042__06\r\n")
    read = read_hsnet_list(path, "pascal", "val", 1)
    assert read.pairs == ((10, "2007_000042"), (6, "2007_000032"), (6, "2007_000042"))
    assert read.index() == {
        6: ["2007_000032", "2007_000042"],
        7: [],
        8: [],
        9: [],
        10: ["2007_000042"],
    }
    assert not read.is_published and read.name == "hsnet/pascal/val/fold1"


def test_digests_are_over_sorted_and_ordered_lines(tmp_path: Path) -> None:
    path = tmp_path / "fold0.txt"
    path.write_text("b__02\na__01\n")
    read = read_hsnet_list(path, "pascal", "trn", 0)
    assert read.digests == (lines_digest(["a__01", "b__02"]), lines_digest(["b__02", "a__01"]))
    lists = {0: ["val2014/x.jpg"], 4: ["val2014/z.jpg", "val2014/y.jpg"]}
    coco = read_hsnet_list(write_coco(tmp_path / "fold0.pkl", lists), "coco", "val", 0)
    lines = ["00 val2014/x.jpg", "04 val2014/z.jpg", "04 val2014/y.jpg"]
    assert coco.digests == (lines_digest(sorted(lines)), lines_digest(lines))


def test_coco_lists_count_classes_from_1(tmp_path: Path) -> None:
    lists = {n: [] for n in range(80)} | {2: ["val2014/COCO_val2014_000000000042.jpg"]}
    read = read_hsnet_list(write_coco(tmp_path / "fold2.pkl", lists), "coco", "val", 2)
    assert read.pairs == ((3, "COCO_val2014_000000000042"),)
    assert list(read.index()) == list(range(3, 81, 4))


class _Shout:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("echo pickled code ran",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({0: ["train2014/x.jpg"]}, "class 0: expected val2014/*.jpg, got 'train2014/x.jpg'"),
        ({80: []}, "expected a dict: class 0..79 -> files"),
        (["val2014/x.jpg"], "expected a dict: class 0..79 -> files, got list"),
        (_Shout(), "expected a pickled dict of lists, got it asks for posix.system"),
        ({1: ["val2014/x.jpg"]}, "expected classes of val of fold 0 (1..77), got 'x' of class 2"),
    ],
)
def test_bad_pickles_are_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], content: object, message: str
) -> None:
    path = write_coco(tmp_path / "fold0.pkl", content)
    with pytest.raises(ValueError, match=re.escape(message)):
        read_hsnet_list(path, "coco", "val", 0)
    assert "ran" not in capfd.readouterr().out


def test_a_damaged_pickle_is_refused(tmp_path: Path) -> None:
    path = write_coco(tmp_path / "fold0.pkl", {0: ["val2014/x.jpg"]})
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"fold0\.pkl': expected a pickled dict"):
        read_hsnet_list(path, "coco", "val", 0)


@pytest.mark.parametrize("line", ["2007_000032", "2007_000032__21", "2007_000032__1", "a b__01"])
def test_bad_pascal_lines_are_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "fold0.txt"
    path.write_text(f"2007_000033__01\n{line}\n")
    with pytest.raises(ValueError, match=rf"line 2: expected .*, got '{line}'"):
        read_hsnet_list(path, "pascal", "val", 0)


def test_lists_of_another_fold_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "fold0.txt"
    path.write_text("2007_000033__06\n")
    with pytest.raises(ValueError, match=r"expected classes of val of fold 0 \(1\.\.5\), got"):
        read_hsnet_list(path, "pascal", "val", 0)
    with pytest.raises(ValueError, match=r"fold: expected 0\.\.3, got 4"):
        read_hsnet_list(path, "pascal", "val", 4)


def test_all_folds_are_read_from_either_folder(tmp_path: Path) -> None:
    for fold in range(4):
        path = tmp_path / "pascal" / "val" / f"fold{fold}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"x__{5 * fold + 1:02}\n")
    lists = read_hsnet_lists(tmp_path, "pascal", "val")
    assert [one.pairs for one in lists] == [((5 * fold + 1, "x"),) for fold in range(4)]
    assert read_hsnet_lists(tmp_path / "pascal", "pascal", "val") == lists


def test_lists_are_made_again_with_large_objects_in_published_order() -> None:
    pixels = {
        "c": {1: 2048, 3: 9000, 6: 9000},
        "a": {3: 2047},
        "b": {2: 5000, 1: 4000},
    }
    images = Counted("pascal", 20, pixels)
    val = make_hsnet_list(images, "val", 0)
    assert val.pairs == ((1, "b"), (2, "b"), (1, "c"), (3, "c"))
    trn = make_hsnet_list(images, "trn", 0)
    assert trn.pairs == ((1, "b"), (1, "c"), (2, "b"), (3, "c"))
    assert make_hsnet_list(images, "val", 0, minimum=2047).pairs[0] == (3, "a")
    assert make_hsnet_list(images, "val", 1).pairs == ((6, "c"),)


def test_coco_lists_are_made_again_by_class() -> None:
    images = Counted("coco", 80, {"z": {1: 9000, 5: 9000, 2: 9000}, "y": {1: 3000}})
    assert make_hsnet_list(images, "val", 0).pairs == ((1, "y"), (1, "z"), (5, "z"))
    assert make_hsnet_list(images, "trn", 0).pairs == ((2, "z"),)
    with pytest.raises(ValueError, match="images: expected a set of pascal or coco, got folder"):
        make_hsnet_list(Counted("folder", 1, {}), "val", 0)


def test_pairs_become_places_of_a_set() -> None:
    images = Counted("pascal", 20, {"c": {1: 9}, "a": {3: 1}})
    listed = HSNetList("pascal", "val", 0, ((3, "a"), (1, "c")))
    assert listed.places(images) == [(3, 1), (1, 0)]
    with pytest.raises(ValueError, match="got 'b', which is not there"):
        HSNetList("pascal", "val", 0, ((3, "b"),)).places(images)
    with pytest.raises(ValueError, match="got 'c' without class 3"):
        HSNetList("pascal", "val", 0, ((3, "c"),)).places(images)


@pytest.mark.parametrize(
    ("lines", "names"),
    [
        (["JPEGImages/a.jpg SegmentationClassAug/a.png", "JPEGImages/b.jpg S/b.png"], ("a", "b")),
        (["b", "a"], ("b", "a")),
        (["/JPEGImages/b.jpg"], ("b",)),
    ],
)
def test_pfenet_lists_are_names_in_order(
    tmp_path: Path, lines: Sequence[str], names: tuple[str, ...]
) -> None:
    path = tmp_path / "list.txt"
    path.write_text("\n".join(lines))
    assert read_pfenet_list(path) == names


@pytest.mark.parametrize("lines", ["a.jpg b.png", "a\nb\na", "a a a"])
def test_bad_pfenet_lists_are_refused(tmp_path: Path, lines: str) -> None:
    path = tmp_path / "list.txt"
    path.write_text(lines)
    with pytest.raises(ValueError, match=r"list '.*list\.txt'"):
        read_pfenet_list(path)


def test_panets_lists_are_a_file_a_class(tmp_path: Path) -> None:
    for number in range(1, 21):
        (tmp_path / f"class{number}.txt").write_text(f"z{number}\na{number}\n")
    lists = read_panet_lists(tmp_path)
    assert list(lists) == list(range(1, 21)) and lists[7] == ("z7", "a7")
    (tmp_path / "class9.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"class9\.txt"):
        read_panet_lists(tmp_path)


def test_names_are_stripped_lines(tmp_path: Path) -> None:
    path = tmp_path / "test.txt"
    path.write_bytes(b"abe's_flyingfish\r\n\r\nzebra\r\n")
    names = read_names(path)
    assert names == ("abe's_flyingfish", "zebra")
    assert not matches("hsnet/fss/test", names)
