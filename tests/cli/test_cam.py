"""`fastfss cam` as a program of its own, with a small CLIP of random weights."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from fastfss.data import open_set, read_image
from fastfss.text import activation_maps
from fastfss.training.activations import ActivationMaps, published_name
from tests.cli.program import run
from tests.data.own_sets import label_map, write_pair
from tests.text.towers import tiny_state, tiny_tower


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "tiny.safetensors"
    safetensors.torch.save_file(tiny_state(), path)
    return path


def cam(*arguments: object) -> subprocess.CompletedProcess[str]:
    return run("cam", *arguments)


def own_set(root: Path) -> Path:
    for number, classes in enumerate([[1], [2, 3], [3]]):
        image, mask = root / "images" / f"{number}.png", root / "masks" / f"{number}.png"
        write_pair(image, mask, label_map(40 + number, 60, [0, *classes]), seed=number)
    (root / "classes.txt").write_text("cat\ndog\ntv\n")
    return root


def test_a_sets_maps_are_made_read_and_gone_on_with(tmp_path: Path, clip: Path) -> None:
    root, out = own_set(tmp_path / "set"), tmp_path / "maps"
    command = ("--clip", clip, "--data", root, "--out", out, "--batch", 2)
    done = cam(*command)
    assert done.returncode == 0, done.stderr
    assert "3 images: 4 maps made, 0 images done before" in done.stdout
    assert sorted(file.name for file in out.glob("*.pt")) == [
        *("0--0.pt", "1--1.pt", "1--2.pt", "2--2.pt")
    ]
    images, maps = open_set("folder", root), ActivationMaps(out)
    for number, item in enumerate(images.items):
        for cls in item.pixels:
            wanted = activation_maps(
                tiny_tower(), [images.image(number)], [images.classes[cls]], ["cat", "dog", "tv"]
            )
            torch.testing.assert_close(maps.read(item, cls), wanted[0], rtol=1e-3, atol=1e-4)
    before = (out / "0--0.pt").stat().st_mtime_ns
    (out / "1--2.pt").unlink()
    again = cam(*command)
    assert "3 images: 2 maps made, 2 images done before" in again.stdout
    assert (out / "0--0.pt").stat().st_mtime_ns == before
    assert not list(out.glob("*tmp*"))


def test_photos_and_labels_of_ones_own(tmp_path: Path, clip: Path) -> None:
    photos, out = tmp_path / "photos", tmp_path / "maps"
    photos.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(photos / "a.png")
    labels = ("--label", "red lamp", "--label", "dog")
    done = cam("--clip", clip, "--images", photos, *labels, "--others", "pascal", "--out", out)
    assert done.returncode == 0, done.stderr
    names = json.loads((out / ".cam.json").read_text())["names"]
    assert names[:2] == ["red lamp", "dog"] and len(names) == 21
    found = torch.load(out / "a--1.pt", weights_only=True)
    assert found.shape == (50, 50) and found.dtype == torch.float32
    wanted = activation_maps(tiny_tower(), [read_image(photos / "a.png")], ["dog"], names)
    torch.testing.assert_close(found, wanted[0], rtol=1e-3, atol=1e-4)


def test_what_does_not_fit_is_said_in_a_line(tmp_path: Path, clip: Path) -> None:
    root, out = own_set(tmp_path / "set"), tmp_path / "maps"
    assert cam("--clip", clip, "--data", root, "--out", out).returncode == 0
    other = cam("--clip", clip, "--data", root, "--out", out, "--template", "a {}")
    assert other.returncode == 2 and "template was a photo of a {}, now a {}" in other.stderr
    (out / "0--0.pt").write_bytes(b"damaged")
    damaged = cam("--clip", clip, "--data", root, "--out", out)
    assert damaged.returncode == 2 and "0--0.pt: expected a map saved by torch" in damaged.stderr
    anew = cam("--clip", clip, "--data", root, "--out", out, "--overwrite")
    assert anew.returncode == 0 and "4 maps made" in anew.stdout
    assert "Traceback" not in other.stderr + damaged.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "expected --data for a set, or --images and --label"),
        (("--images", "."), "--images and --label belong together"),
        (("--images", ".", "--label", "x", "--others", "absent.txt"), "--others: expected coco"),
    ],
)
def test_bad_arguments_are_named(
    arguments: tuple[str, ...], message: str, tmp_path: Path, clip: Path
) -> None:
    done = cam("--clip", clip, "--out", tmp_path / "maps", *arguments)
    assert done.returncode == 2 and message in " ".join(done.stderr.split())


def test_cocos_files_name_the_folder_of_the_photograph() -> None:
    from fastfss.data import Item

    item = Item("COCO_val2014_1", Path("coco/val2014/COCO_val2014_1.jpg"), Path("m.png"), {1: 5})
    assert published_name("coco", item, 1) == "val2014/COCO_val2014_1.jpg--0.pt"
    assert published_name("pascal", item, 20) == "COCO_val2014_1--19.pt"
