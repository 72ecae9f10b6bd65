from __future__ import annotations

import re
from pathlib import Path

import pytest

from fastfss.cli.queries import assign_names, find_queries


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("b.jpg", "a.PNG", "notes.txt", "deep/c.jpg", "deep/er/d.jpg", "x[1].jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("sources", "found"),
    [
        (["."], ["a.PNG", "b.jpg", "x[1].jpg"]),
        (["b.jpg", "a.PNG"], ["b.jpg", "a.PNG"]),
        (["*.jpg"], ["b.jpg", "x[1].jpg"]),
        (["**/*.jpg"], ["b.jpg", "deep/c.jpg", "deep/er/d.jpg", "x[1].jpg"]),
        (["x[1].jpg"], ["x[1].jpg"]),
        (["notes.txt"], ["notes.txt"]),
        (
            ["b.jpg", ".", "./b.jpg", "deep/../b.jpg"],
            ["b.jpg", "a.PNG", "x[1].jpg", "deep/../b.jpg"],
        ),
        (["d*p", "b.jpg"], ["b.jpg"]),
    ],
    ids=str,
)
def test_queries_are_files_folders_and_patterns_each_once(photos, monkeypatch, sources, found):
    monkeypatch.chdir(photos)
    if sources == ["d*p", "b.jpg"]:
        (photos / "dip").touch()
        found = ["dip", *found]
    assert find_queries(sources) == [photos / name for name in found]


@pytest.mark.parametrize("source", ["absent.jpg", "*.tif", "deep/absent/*"])
def test_missing_query_is_file_not_found(photos, monkeypatch, source):
    monkeypatch.chdir(photos)
    with pytest.raises(
        FileNotFoundError, match=re.escape(f"--query '{source}': no such file or folder")
    ):
        find_queries([source])


def test_errors_name_the_option_that_was_given(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"--calibrate 'absent\.jpg': no such file"):
        find_queries(["absent.jpg"], "--calibrate")
    with pytest.raises(ValueError, match=re.escape(f"--images '{tmp_path}': expected a folder")):
        find_queries([str(tmp_path)], "--images")


def test_folder_without_images_is_an_error_that_knows_of_its_subfolders(tmp_path):
    with pytest.raises(ValueError, match=r"expected a folder with images, got none$"):
        find_queries([str(tmp_path)])
    (tmp_path / "monday").mkdir()
    hint = re.escape(f"for its subfolders give '{tmp_path}/**/*.jpg'")
    with pytest.raises(ValueError, match=hint):
        find_queries([str(tmp_path)])


def named(queries: list[str], **known: str) -> list[str]:
    paths = [Path(query) for query in queries]
    return list(assign_names(paths, {f"/{key}": name for key, name in known.items()}).values())


@pytest.mark.parametrize(
    ("queries", "names"),
    [
        (["/a.jpg", "/b.jpg"], ["a", "b"]),
        (["/x/a.jpg", "/y/a.jpg", "/a.png"], ["a", "a_2", "a_3"]),
        (["/x/a.jpg", "/y/a.jpg", "/a_2.jpg"], ["a", "a_3", "a_2"]),
        (["/x/A.jpg", "/y/a.jpg"], ["A", "a_2"]),
        (["/x/A.jpg", "/y/a.jpg", "/z/A_2.jpg"], ["A", "a_3", "A_2"]),
    ],
)
def test_outputs_are_named_by_stem_and_numbered_where_stems_clash(queries, names):
    assert named(queries) == names


def test_names_of_earlier_runs_stay_and_are_not_given_again():
    assert named(["/x/a.jpg", "/y"], y="a") == ["a_2", "a"]
    assert named(["/x/a.jpg"], gone="a", also_gone="a_2") == ["a_3"]


def test_long_stem_is_cut_to_what_file_systems_take():
    names = named([f"/{'ü' * 127}.jpg", f"/x/{'ü' * 127}.jpg", f"/{'ü' * 127}z.jpg"])
    assert len(set(names)) == 3
    assert all(len(f".{name}_overlay.png.0a1b2c3d.fastfss-tmp".encode()) < 256 for name in names)
