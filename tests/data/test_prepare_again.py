"""Preparing sets: what is made again, what is refused before any work, what the check finds."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from fastfss.data.prepare.archives import list_members, unpack
from fastfss.data.prepare.check import check_set
from fastfss.data.prepare.coco import prepare_coco
from fastfss.data.prepare.davis import prepare_davis
from fastfss.data.prepare.fss1000 import prepare_fss1000
from fastfss.data.prepare.pascal import prepare_pascal
from tests.data.tiny_archives import (
    MAKERS,
    Coco,
    make_coco,
    make_fss1000,
    tree,
    write_tar,
    write_zip,
)

# pycocotools' wrapper of an array is older than NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Coco:
    return make_coco(tmp_path_factory.mktemp("coco") / "archives")


def times(root: Path) -> dict[str, int]:
    return {name: (root / name).stat().st_mtime_ns for name in tree(root)}


def prepare_one(kind: str, root: Path, archives: Path) -> Path:
    if kind == "pascal":
        return prepare_pascal(root, [archives])
    if kind == "coco":
        return prepare_coco(root, [archives], overlaps=True)
    if kind == "fss1000":
        return prepare_fss1000(root, [archives])
    return prepare_davis(root, [archives])


@pytest.mark.parametrize("kind", MAKERS)
def test_a_second_run_writes_no_image_again(kind: str, tmp_path: Path) -> None:
    MAKERS[kind](tmp_path / "archives")
    folder = prepare_one(kind, tmp_path, tmp_path / "archives")
    before = times(folder)
    prepare_one(kind, tmp_path, tmp_path / "archives")
    after = times(folder)
    # Lists and the file of overlaps are small, and written whole.
    changed = {name for name in before if before[name] != after[name]}
    assert not [name for name in changed if name.endswith((".jpg", ".png", ".json"))]


@pytest.mark.parametrize("kind", MAKERS)
def test_what_was_lost_is_made_again(kind: str, tmp_path: Path) -> None:
    MAKERS[kind](tmp_path / "archives")
    folder = prepare_one(kind, tmp_path, tmp_path / "archives")
    before = tree(folder)
    for number, name in enumerate(before):
        if number % 3 == 0:
            (folder / name).unlink()
        elif number % 3 == 1 and name.endswith((".jpg", ".png")):
            (folder / name).write_bytes(b"")
    left = next(folder.rglob("*.jpg")).parent / ".x.jpg.0000.fastfss-tmp"
    left.write_bytes(b"of a killed run")
    prepare_one(kind, tmp_path, tmp_path / "archives")
    assert tree(folder) == before


@pytest.mark.parametrize("kind", MAKERS)
def test_missing_archives_are_all_named_before_work(kind: str, tmp_path: Path) -> None:
    wanted = {
        "pascal": ("VOCtrainval_11-May-2012.tar", "benchmark.tgz"),
        "coco": ("annotations_trainval2014.zip", "train2014.zip", "val2014.zip"),
        "fss1000": ("fewshot_data.zip",),
        "davis": ("DAVIS-2017-trainval-480p.zip", "DAVIS-data.zip"),
    }[kind]
    (tmp_path / "archives").mkdir()
    with pytest.raises(FileNotFoundError) as caught:
        prepare_one(kind, tmp_path, tmp_path / "archives")
    assert all(name in str(caught.value) for name in wanted)
    assert f"'{tmp_path / 'archives'}'" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["archives"]


@pytest.mark.parametrize("keep", [0.3, 0.9, 0.999])
@pytest.mark.parametrize("kind", MAKERS)
def test_cut_archives_are_refused_before_work(kind: str, keep: float, tmp_path: Path) -> None:
    archives = tmp_path / "archives"
    MAKERS[kind](archives)
    for path in sorted(archives.iterdir()):
        content = path.read_bytes()
        # A tar's padding is no loss.
        length = len(content.rstrip(b"\0") if path.suffix == ".tar" else content)
        path.write_bytes(content[: int(length * keep)])
        with pytest.raises(ValueError, match=rf"archive '{path}': expected a whole archive"):
            prepare_one(kind, tmp_path, archives)
        path.write_bytes(content)
        assert [one.name for one in tmp_path.iterdir()] == ["archives"]


def test_archives_that_are_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "fewshot_data.zip").write_text("<html>log in</html>")
    with pytest.raises(ValueError, match=r"fewshot_data\.zip': expected a whole archive"):
        prepare_fss1000(tmp_path, [tmp_path])


def test_a_damaged_file_in_an_archive_is_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"x/1.jpg": b"a" * 1000, "x/2.jpg": b"b" * 1000})
    content = bytearray(path.read_bytes())
    content[content.index(b"bbbb")] = ord("c")
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.zip': expected a whole archive"):
        unpack(path, tmp_path / "out", lambda name: name)
    assert [one.name for one in (tmp_path / "out" / "x").iterdir()] == ["1.jpg"]


@pytest.mark.parametrize("name", ["../out.jpg", "/tmp/out.jpg", "x/../../out.jpg", "..\\out.jpg"])
@pytest.mark.parametrize("kind", ["zip", "tar", "tgz"])
def test_members_that_lead_out_are_refused(tmp_path: Path, name: str, kind: str) -> None:
    files = {"x/1.jpg": b"1", name: b"2"}
    path = tmp_path / f"a.{kind}"
    if kind == "zip":
        write_zip(path, files)
    else:
        write_tar(path, files, "w:gz" if kind == "tgz" else "w")
    with pytest.raises(ValueError, match="expected files inside of its own folder"):
        unpack(path, tmp_path / "in", lambda member: member)
    assert sorted(one.name for one in tmp_path.iterdir()) == [path.name]


def test_links_in_archives_are_left_out(tmp_path: Path) -> None:
    import tarfile

    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        link = tarfile.TarInfo("x/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        tar.addfile(tarfile.TarInfo("x/1.jpg"))
    assert [member.name for member in list_members(tmp_path / "a.tar")] == ["x/1.jpg"]


def test_a_full_disk_is_noticed_before_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archives = make_fss1000(tmp_path / "archives")
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr("fastfss.data.prepare.archives.shutil.disk_usage", lambda _: usage)
    with pytest.raises(OSError, match="GiB are to be written"):
        prepare_fss1000(tmp_path, [archives])


def test_compressed_members_have_their_real_sizes(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/1.jpg", b"0" * 5000)
    unpack(path, tmp_path, lambda name: name)
    assert (tmp_path / "x" / "1.jpg").stat().st_size == 5000


@pytest.mark.parametrize("kind", MAKERS)
def test_check_compares_with_what_was_published(kind: str, tmp_path: Path) -> None:
    MAKERS[kind](tmp_path / "archives")
    prepare_one(kind, tmp_path, tmp_path / "archives")
    found = check_set(kind, tmp_path)
    assert any("as published, got" in problem for problem in found.problems)
    part = check_set(kind, tmp_path, subset=True)
    assert part.problems == [] and part.lines == found.lines


def test_check_names_the_first_bad_files(coco: Coco, tmp_path: Path) -> None:
    folder = prepare_coco(tmp_path, [coco.folder])
    for n in (2, 3):
        mask = folder / "annotations" / "val2014" / f"COCO_val2014_{n:012}.png"
        mask.write_bytes(mask.read_bytes()[:30])
    (folder / "train2014" / f"COCO_train2014_{4:012}.jpg").write_bytes(b"no image")
    problems = check_set("coco", tmp_path, subset=True).problems
    assert len(problems) == 2
    assert "train: image" in problems[0] and "000000000004.jpg" in problems[0]
    assert "000000000002.png" in problems[1] and "000000000003.png" in problems[1]


def test_check_knows_the_published_numbers(
    coco: Coco, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_coco(tmp_path, [coco.folder])
    published = {"train": (6, 5), "val": (6, 5)}
    monkeypatch.setattr("fastfss.data.prepare.check._COCO_PARTS", published)
    found = check_set("coco", tmp_path)
    assert found.problems == []
    assert "val: images: 6, as published" in found.lines
    assert "val: masks: 5, as published" in found.lines


def test_check_refuses_other_kinds_and_places(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="kind: expected one of pascal, coco"):
        check_set("ade", tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        check_set("folder", tmp_path / "none")
