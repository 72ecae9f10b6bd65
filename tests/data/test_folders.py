from __future__ import annotations

import re

import pytest

from fastfss.data import read_support_folder
from fastfss.data.folders import list_images


def fill(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (["2.jpg", "2.png", "1.jpg", "1.png"], [("1.jpg", "1.png"), ("2.jpg", "2.png")]),
        (
            ["1.jpg", "1_mask.png", "2.PNG", "2-Mask.png"],
            [("1.jpg", "1_mask.png"), ("2.PNG", "2-Mask.png")],
        ),
        (["a.jpeg", "a.mask.tif", "notes.txt", ".hidden.jpg"], [("a.jpeg", "a.mask.tif")]),
        (["images/x.png", "masks/x.png", "other.jpg"], [("images/x.png", "masks/x.png")]),
    ],
    ids=["same stem", "ending", "other files", "two folders"],
)
def test_images_are_paired_with_their_masks(tmp_path, names, pairs):
    folder = fill(tmp_path / "cow", *names)
    expected = [(folder / image, folder / mask) for image, mask in pairs]
    assert read_support_folder(str(folder)) == expected


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "expected 1.jpg with 1.png"),
        (["1.jpg", "1.png", "2.jpg"], "image '2.jpg': expected one mask, got none"),
        (["1.jpg", "1.png", "2.png"], "mask '2.png': expected one image, got none"),
        (["1.jpg", "1.jpeg", "1.png"], "image '1.jpg': expected one mask, got none"),
        (
            ["1.jpg", "1_mask.png", "1-mask.png"],
            "expected one mask, got '1-mask.png', '1_mask.png'",
        ),
        (["images/1.jpg", "masks/2.png"], "image '1.jpg': expected one mask, got none"),
    ],
)
def test_unpaired_files_are_an_error_naming_the_file(tmp_path, names, message):
    folder = fill(tmp_path, *names)
    with pytest.raises(ValueError, match=re.escape(message)):
        read_support_folder(folder)


def test_missing_folder_and_file_are_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        read_support_folder(tmp_path / "absent")
    with pytest.raises(NotADirectoryError, match="expected a folder, got a file"):
        read_support_folder(fill(tmp_path, "1.jpg") / "1.jpg")


def test_list_images_leaves_out_other_files_and_subfolders(tmp_path):
    fill(tmp_path, "b.JPG", "a.png", "c.txt", ".d.png", "deeper/e.png")
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in list_images(tmp_path)] == ["a.png", "b.JPG"]
