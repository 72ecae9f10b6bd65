"""`fastfss predict --label`, as a program of its own, with a small CLIP of random weights."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
from PIL import Image

from fastfss.text import TextLabels
from fastfss.text.labels import OTHERS
from tests.cli.program import run
from tests.text.towers import picture, tiny_state, tiny_tower

MODEL = ("--method", "ssp", "--backbone", "resnet18", "--layers", "layer2", "--size", "64")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "tiny.safetensors"
    safetensors.torch.save_file(tiny_state(), path)
    return path


def photos(folder: Path, count: int = 3) -> list[Path]:
    files = [folder / f"{number}.png" for number in range(count)]
    for number, file in enumerate(files):
        Image.fromarray(picture(50, 70, number).permute(1, 2, 0).numpy()).save(file)
    return files


def predict(*arguments: object) -> subprocess.CompletedProcess[str]:
    return run("predict", *MODEL, *arguments)


def of_all(images: list[Path], *, found: bool) -> str:
    """A label that the random tower finds in all images, or not in the first."""
    text = TextLabels(tiny_tower())
    names = OTHERS["coco"]
    seen = np.array([text.maps(picture(50, 70, n), names, "whole").numpy().max((1, 2)) > 0
                     for n in range(len(images))])  # fmt: skip
    return names[int(np.flatnonzero(seen.all(axis=0) if found else ~seen[0])[0])]


def test_a_label_stands_for_masks_of_all_support_images(tmp_path: Path, clip: Path) -> None:
    files, out = photos(tmp_path), tmp_path / "results"
    label = of_all(files[:2], found=True)
    command = ("--support", *files[:2], "--query", files[2], "--out", out, "--label", label)
    done = predict(*command, "--clip", clip)
    assert done.returncode == 0, done.stderr
    report = json.loads((out / "predictions.json").read_text())
    assert [way["name"] for way in report["settings"]["ways"]] == [label]
    assert Image.open(out / "2_mask.png").size == (70, 50)
    other = predict(*command, "--clip", clip, "--label-threshold", 0.7)
    assert other.returncode == 2 and "threshold was 0.5, now 0.7" in other.stderr


def test_a_label_that_is_not_found_is_said_in_a_line(tmp_path: Path, clip: Path) -> None:
    files = photos(tmp_path)
    label = of_all(files[:1], found=False)
    command = ("--support", files[0], "--query", files[2], "--out", tmp_path / "results")
    done = predict(*command, "--label", label, "--clip", clip)
    assert done.returncode == 2
    assert f"shots[0] image: '{label}' was not found" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--support", "a.png", "--label", "cat"), "--label needs --clip"),
        (("--label", "cat", "--clip", "x.pt"), "got no --support"),
        (("--support", "a.png", "--label", "cat", "--clip", "x.pt", "--click", "3,3"), "got both"),
    ],
)
def test_options_that_do_not_fit_are_named(
    arguments: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    (file,) = photos(tmp_path, 1)
    done = predict(*arguments, "--query", file, "--out", tmp_path / "results")
    assert done.returncode == 2 and message in " ".join(done.stderr.split())
