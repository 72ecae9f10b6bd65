"""`fastfss predict` as a user runs it: a program of its own, a real model, photographs."""

from __future__ import annotations

import json
import random
import shlex
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage
import torch
from PIL import Image, ImageOps
from safetensors.torch import save_file

import fastfss
from fastfss.cli import main
from fastfss.data import read_mask
from tests.cli.program import run, start_until
from tests.cli.test_prediction_folder import check_consistent
from tests.shared import shared

PHOTOS = Path(skimage.__file__).parent / "data"
DOCUMENT = Path(__file__).parents[2] / "docs" / "your-own-images.md"
# Chelsea's face, in pixels of the photograph: centre row and column, half height and half width.
FACE = (125, 232, 110, 118)


def run_here(*arguments: object) -> int:
    """Run in this process, which has torch loaded already: a second instead of three."""
    threads = torch.get_num_threads()
    try:
        return main([str(argument) for argument in arguments])
    finally:
        torch.set_num_threads(threads)


def save_photo(name: str, path: Path, longer_side: int, *, mirrored: bool = False) -> None:
    with Image.open(PHOTOS / name) as photo:
        image = ImageOps.contain(photo.convert("RGB"), (longer_side, longer_side))
    path.parent.mkdir(exist_ok=True)
    (ImageOps.mirror(image) if mirrored else image).save(path)


def face(height: int, width: int) -> np.ndarray:
    """Chelsea's face in the photograph resized to that size."""
    row, column, half_height, half_width = (value * width / 451 for value in FACE)
    y, x = np.ogrid[:height, :width]
    return ((y - row) / half_height) ** 2 + ((x - column) / half_width) ** 2 < 1


def make_support(folder: Path, longer_side: int = 451) -> tuple[Path, Path]:
    """The cat and a mask of its face, as a 0/255 PNG."""
    image, mask = folder / "chelsea.png", folder / "chelsea_mask.png"
    save_photo("chelsea.png", image, longer_side)
    with Image.open(image) as photo:
        Image.fromarray(face(photo.height, photo.width)).convert("L").save(mask)
    return image, mask


def random_weights(path: Path) -> Path:
    torch.manual_seed(0)
    state = fastfss.create_encoder("resnet18").state_dict()
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, path)
    return path


def images_of(out: Path) -> list[dict[str, Any]]:
    """What the report says of each image, without the seconds."""
    images = json.loads((out / "predictions.json").read_text())["images"]
    return [{key: image[key] for key in image.keys() - {"seconds"}} for image in images]


@pytest.fixture
def many_photos(tmp_path: Path) -> tuple[object, ...]:
    """Thirty small photographs and an untrained backbone; the arguments but for --out."""
    names = ("astronaut.png", "coffee.png", "rocket.jpg", "camera.png", "coins.png")
    for number in range(30):
        path = tmp_path / "photos" / f"{number:02}.png"
        save_photo(names[number % 5], path, 60 + number, mirrored=number % 2 == 1)
    return (
        *("predict", "--backbone", "resnet18", "--layers", "layer2,layer3"),
        *("--weights", random_weights(tmp_path / "weights.safetensors"), "--size", "64"),
        *("--threads", "1"),
        *("--support", *make_support(tmp_path, 100), "--query", tmp_path / "photos"),
    )


def start_run(lines: int, out: Path, *arguments: object) -> subprocess.Popen[str]:
    """Start the program, and return when the journal of its output folder has that many lines."""
    journal = out / "predictions.jsonl"

    def reached() -> bool:
        return journal.exists() and journal.read_bytes().count(b"\n") >= lines

    return start_until(reached, *arguments, "--out", out)


def test_photos_are_segmented_after_one_annotated_photo(tmp_path):
    weights = shared("data/backbones/resnet18_to_layer3.safetensors")
    support = make_support(tmp_path)
    save_photo("chelsea.png", tmp_path / "photos" / "cat.png", 400, mirrored=True)
    save_photo("coffee.png", tmp_path / "photos" / "coffee.jpg", 500)
    done = run(
        *("predict", "--backbone", "resnet18", "--layers", "layer2,layer3", "--weights", weights),
        *("--support", *support, "--name", "cat", "--size", "320"),
        *("--query", tmp_path / "photos", "--out", tmp_path / "out"),
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "2 images: 2 segmented, 0 done before, 0 failed" in done.stdout
    check_consistent(tmp_path / "out")
    predicted = read_mask(tmp_path / "out" / "cat_mask.png").numpy() == 1
    truth = face(*predicted.shape)[:, ::-1]
    assert (predicted & truth).sum() / (predicted | truth).sum() > 0.6
    with Image.open(tmp_path / "out" / "coffee_overlay.png") as overlay:
        assert max(overlay.size) == 500


def test_warning_and_error_are_a_line_each(tmp_path):
    done = run(
        *("predict", "--backbone", "resnet18", "--layers", "layer2"),
        *("--support", *make_support(tmp_path, 90), "--save-task", tmp_path / "cat.safetensors"),
        *("--task", Path(__file__), "--query", tmp_path / "chelsea.png", "--out", tmp_path / "out"),
    )
    assert done.returncode == 2
    warning, error = done.stderr.splitlines()
    assert warning.startswith("warning: this model has random weights")
    assert error.startswith(f"error: {__file__}: ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--method", "sps"), "got 'sps'"),
        (("--backbone", "resnet17"), "resnet17"),
        (("--layers", "layer9"), "layer9"),
        (("--weights", "chelsea.png"), "chelsea.png"),
        (("--weights", "absent.pth"), "error: --weights 'absent.pth': no such file\n"),
        (("--task", "chelsea.png"), "chelsea.png"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_bad_choice_is_one_line_and_leaves_no_results(
    tmp_path, monkeypatch, capfd, options, message
):
    make_support(tmp_path, 60)
    monkeypatch.chdir(tmp_path)
    arguments = (
        *("predict", "--backbone", "resnet18", "--layers", "layer2"),
        *("--support", "chelsea.png", "chelsea_mask.png"),
        *("--query", "chelsea.png", "--out", "out", *options),
    )
    # In this process: starting the program is most of the time, and the test above does it.
    assert main(arguments) == 2
    errors = capfd.readouterr().err.splitlines()
    (line,) = [line for line in errors if not line.startswith("warning: ")]
    assert line.startswith("error: ")
    assert message.strip() in line
    assert not list((tmp_path / "out").glob("*"))


def test_killed_run_leaves_no_half_file_and_the_next_one_finishes_it(many_photos, tmp_path):
    assert run_here(*many_photos, "--out", tmp_path / "whole") == 0
    out = tmp_path / "killed"
    process = start_run(4, out, *many_photos)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    check_consistent(out)
    done_before = sum(1 for _ in (out / "predictions.jsonl").open()) - 1
    assert 3 <= done_before < 30

    done = run(*many_photos, "--out", out)
    assert done.returncode == 0
    assert f"{30 - done_before} segmented, {done_before} done before, 0 failed" in done.stdout
    check_consistent(out)
    assert images_of(out) == images_of(tmp_path / "whole")
    assert not list(out.glob(".*"))


def test_interrupted_run_says_how_to_go_on_and_does(many_photos, tmp_path, capfd):
    out = tmp_path / "out"
    process = start_run(4, out, *many_photos)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr == "interrupted; the same command goes on where this one stopped\n"
    check_consistent(out)
    finished = len(images_of(out))
    assert 3 <= finished < 30
    assert f"30 images: {finished} segmented" in stdout
    assert json.loads((out / "predictions.json").read_text())["pending"] == 30 - finished
    assert run_here(*many_photos, "--out", out) == 0
    assert f"{finished} done before" in capfd.readouterr().out


def test_the_documents_python_and_command_do_what_they_say(tmp_path, monkeypatch):
    for name in ("cow1", "cow2"):
        image, mask = make_support(tmp_path, 90)
        with Image.open(image) as photo:
            photo.save(tmp_path / f"{name}.jpg")
        mask.rename(tmp_path / f"{name}.png")
    for photo in ("field.jpg", "photos/field.jpg", "photos/barn.jpg"):
        save_photo("coffee.png", tmp_path / photo, 100)
    random_weights(tmp_path / "resnet18.safetensors")
    monkeypatch.chdir(tmp_path)
    text = DOCUMENT.read_text()

    exec(text.split("```python\n")[1].split("```")[0], {})
    with Image.open("field_mask.png") as mask, Image.open("field_overlay.png") as overlay:
        assert mask.size == overlay.size == (100, 67)

    shell = text.split("```console\n$ fastfss ")[1].split("```")[0]
    assert main(shlex.split(shell.replace("\\\n", " "))) == 0
    assert [Path(image["file"]).name for image in images_of(Path("results"))] == [
        "barn.jpg",
        "field.jpg",
    ]
    example = json.loads(text.split("```json\n")[1].split("```")[0])
    report = json.loads(Path("results/predictions.json").read_text())
    assert report.keys() == example.keys()
    assert report["images"][0].keys() == example["images"][0].keys()
    assert report["images"][0]["ways"][0].keys() == example["images"][0]["ways"][0].keys()


@pytest.mark.slow
def test_run_killed_again_and_again_comes_to_the_same_end(many_photos, tmp_path):
    assert run_here(*many_photos, "--out", tmp_path / "whole") == 0
    out = tmp_path / "killed"
    moments = random.Random(0)
    for lines in (1, 3, 7, 12, 18, 25):
        process = start_run(lines, out, *many_photos)
        time.sleep(moments.uniform(0, 0.05))
        process.kill()
        process.communicate()
        check_consistent(out)
    assert run_here(*many_photos, "--out", out) == 0
    assert images_of(out) == images_of(tmp_path / "whole")
