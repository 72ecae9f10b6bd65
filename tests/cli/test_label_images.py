"""Which images `fastfss label` finds, and what it calls them."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastfss.cli.label_images import find_label_images
from fastfss.data import read_image
from tests.cli.conftest import draw


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("cat/2.jpg", "cat/10.jpg", "cat/2.png", "Cat/2.PNG", "dog/1.jpg", "top.jpg"):
        draw(tmp_path / "photos" / name, seed=1)
    for name in (".hidden.jpg", "cat/.cache/9.jpg", "cat/notes.txt"):
        draw(tmp_path / "x.jpg", seed=1)
        (tmp_path / "photos" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "x.jpg").rename(tmp_path / "photos" / name)
    return tmp_path / "photos"


def test_folder_is_listed_with_its_subfolders_and_mirrored(photos):
    assert {image.name: image.mask for image in find_label_images([str(photos)])} == {
        "Cat/2.PNG": "Cat/2.png",
        "cat/10.jpg": "cat/10.png",
        "cat/2.jpg": "cat/2_2.png",
        "cat/2.png": "cat/2_3.png",
        "dog/1.jpg": "dog/1.png",
        "top.jpg": "top.png",
    }


@pytest.mark.parametrize(
    ("sources", "names"),
    [
        (["cat", "dog"], ["cat/10.jpg", "cat/2.jpg", "cat/2.png", "dog/1.jpg"]),
        (["cat/*.jpg", "./cat/2.jpg"], ["10.jpg", "2.jpg"]),
        (["**/*.jpg"], ["cat/10.jpg", "cat/2.jpg", "dog/1.jpg", "top.jpg"]),
        (["[d]og/*"], ["dog/1.jpg"]),
        (["dog/1.jpg"], ["1.jpg"]),
    ],
    ids=str,
)
def test_names_are_relative_to_what_the_sources_share(photos, monkeypatch, sources, names):
    monkeypatch.chdir(photos)
    assert [image.name for image in find_label_images(sources)] == names


def test_members_of_webdatasets_are_images(tmp_path):
    content = {}
    for number in range(3):
        draw(tmp_path / "x.png", seed=number, width=40 + number)
        content[number] = (tmp_path / "x.png").read_bytes()
    (tmp_path / "x.png").unlink()
    first = {"a/0.png": b"replaced below", "a/0.json": b"{}", "1.PNG": content[1]}
    write_tar(tmp_path / "sets" / "00.tar", {**first, "../../out.png": content[2]})
    with tarfile.open(tmp_path / "sets" / "00.tar", "a") as archive:
        member = tarfile.TarInfo("a/0.png")
        member.size = len(content[0])
        archive.addfile(member, io.BytesIO(content[0]))
    write_tar(tmp_path / "sets" / "01.tar", {"1.png": content[1][:99]})
    images = find_label_images([str(tmp_path / "sets" / "*.tar")])
    assert [(image.name, image.mask) for image in images] == [
        ("00/1.PNG", "00/1.png"),
        ("00/a/0.png", "00/a/0.png"),
        ("00/out.png", "00/out.png"),
        ("01/1.png", "01/1.png"),
    ]
    for image, number in zip(images[:3], (1, 0, 2), strict=True):
        expected = np.asarray(Image.open(io.BytesIO(content[number]))).transpose(2, 0, 1)
        np.testing.assert_array_equal(image.read().numpy(), expected)
    with pytest.raises(ValueError, match=r"image '01/1\.png' of '.*01\.tar': cannot be"):
        images[3].read()


def test_file_is_read_as_everywhere(photos):
    (image,) = find_label_images([str(photos / "top.jpg")])
    assert (image.read() == read_image(photos / "top.jpg")).all()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("absent", "--images 'absent': no such file or folder"),
        ("*.tif", "--images '*.tif': no such file or folder"),
        ("empty", "--images 'empty': expected a folder with images, got none"),
        ("text.tar", "expected an uncompressed .tar, got another file"),
        ("packed.tar", "expected an uncompressed .tar, got another file"),
        ("bare.tar", "--images 'bare.tar': expected images, got .tar files without any"),
    ],
)
def test_sources_without_images_are_errors(tmp_path, monkeypatch, source, message):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("text.tar").write_text("no archive " * 99)
    write_tar(Path("packed.tar"), {"1.png": b"1"}, "w:gz")
    write_tar(Path("bare.tar"), {"1.txt": b"1"})
    with pytest.raises((ValueError, OSError)) as caught:
        find_label_images([source])
    assert message in str(caught.value)
