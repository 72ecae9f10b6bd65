"""`fastfss data` as a user runs it: archives in, sets out, killed and run again."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastfss.atomic import TEMPORARY_SUFFIX
from fastfss.cli import main
from fastfss.data.prepare.coco import prepare_coco
from fastfss.data.prepare.pascal import prepare_pascal
from fastfss.data.sets import open_set
from tests.cli.program import run, start_until
from tests.data.tiny_archives import make_coco, make_davis, make_fss1000, make_pascal, tree

# pycocotools' wrapper of an array is older than NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def run_here(*arguments: object) -> int:
    return main(["data", *map(str, arguments)])


def test_pascal_from_archives_to_a_checked_set(tmp_path: Path) -> None:
    made = make_pascal(tmp_path / "archives")
    root = tmp_path / "sets"
    done = run("data", "prepare", "pascal", "--root", root, "--archives", made.folder, "--subset")
    assert done.returncode == 0, done.stderr
    assert "val: images: 2" in done.stdout
    assert "list hsnet/pascal/val/fold0:" in done.stdout
    assert "merging SBD's masks" in done.stderr
    assert len(open_set("pascal", root, "train").items) == 4
    full = run("data", "check", "pascal", "--root", root)
    assert full.returncode == 1
    assert "problem: val: images: expected 1449 as published, got 2" in full.stderr


@pytest.mark.parametrize("kind", ["coco", "fss1000", "davis"])
def test_other_sets_from_archives(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    {"coco": make_coco, "fss1000": make_fss1000, "davis": make_davis}[kind](tmp_path)
    options = ["--crowds", "skip", "--overlaps"] if kind == "coco" else []
    assert run_here("prepare", kind, "--root", tmp_path, "--subset", *options) == 0
    first = capsys.readouterr()
    assert run_here("check", kind, "--root", tmp_path, "--subset") == 0
    assert capsys.readouterr().out == first.out
    assert run_here("check", kind, "--root", tmp_path) == 1
    assert "problem: " in capsys.readouterr().err


def count(folder: Path) -> int:
    return len([path for path in folder.glob("*.png") if not path.name.startswith(".")])


@pytest.mark.parametrize("kind", ["pascal", "coco"])
def test_a_killed_run_goes_on_to_the_same_files(kind: str, tmp_path: Path) -> None:
    archives, root = tmp_path / "archives", tmp_path / "sets"
    if kind == "pascal":
        make_pascal(archives, more=600)
        whole = prepare_pascal(tmp_path / "whole", [archives])
        masks, stops = root / "VOC2012" / "SegmentationClassAug", (1, 200)
    else:
        make_coco(archives, images=400)
        whole = prepare_coco(tmp_path / "whole", [archives])
        masks, stops = root / "COCO2014" / "annotations" / "train2014", (1, 120)
    arguments = ("data", "prepare", kind, "--root", root, "--archives", archives, "--subset")
    wanted = tree(whole)
    for stop in stops:
        process = start_until(lambda stop=stop: count(masks) >= stop, *arguments)
        process.kill()
        process.wait()
        left = tree(root / whole.name)
        assert left.keys() != wanted.keys()
        # Whatever has its final name is whole.
        final = {name for name in left if not name.endswith(TEMPORARY_SUFFIX)}
        assert all(left[name] == wanted[name] for name in final)
    assert run(*arguments).returncode == 0
    assert tree(root / whole.name) == wanted


def test_missing_archives_are_one_line(tmp_path: Path) -> None:
    done = run("data", "prepare", "coco", "--root", tmp_path / "sets", "--archives", tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    for name in ("annotations_trainval2014.zip", "train2014.zip", "val2014.zip"):
        assert name in done.stderr


def test_bad_options_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_coco(tmp_path)
    for options, message in (
        (("--crowds", "maybe"), "--crowds: expected one of keep, skip, got 'maybe'"),
        (("--parts", "train,test"), "parts: expected some of train, val, got 'test'"),
    ):
        assert run_here("prepare", "coco", "--root", tmp_path, *options) == 2
        assert message in capsys.readouterr().err
    assert run_here("check", "imagenet", "--root", tmp_path) == 2
    assert "kind: expected one of pascal, coco" in capsys.readouterr().err
