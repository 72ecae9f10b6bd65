"""`fastfss predict` with clicks, strokes, boxes and annotation files instead of masks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastfss import Annotation, create_model
from fastfss.cli.marks import read_marks
from tests.cli.conftest import Outcome, Program, draw
from tests.cli.program import run


def predict(program: Program, *options: object) -> Outcome:
    """With the first support image and what the options say of it."""
    support = program.folder / "support.png"
    query = program.folder / "photos"
    return program.run(
        *("predict", "--support", support, "--name", "bright", "--query", query),
        *("--out", program.results, *options),
    )


def inside(program: Program) -> str:
    """A pixel of the bright rectangle, as the option takes it."""
    rows, columns = np.nonzero(draw(program.folder / "again.png", seed=0) == 1)
    return f"{columns.mean():.0f},{rows.mean():.0f}"


def test_a_click_stands_for_the_mask(program: Program) -> None:
    outcome = predict(program, "--click", inside(program), "-1,1")
    assert (outcome.code, outcome.err) == (0, "")
    (mask,) = program.model.masks
    assert mask[1, 1] == 0
    for file, truth in program.truth.items():
        with Image.open(program.results / program.images()[file]["mask"]) as found:
            np.testing.assert_array_equal(np.asarray(found) == 1, truth == 1)


def test_every_form_of_the_options_says_the_same() -> None:
    said = read_marks(["30,20", "-5,5"], ["-1,1,9,9"], ["2,2,50,40"])
    assert said is not None
    assert [(m.kind, m.positive) for m in said.marks] == [
        *(("box", True), ("stroke", False)),
        *(("point", True), ("point", False)),
    ]
    mask = said.rasterize((60, 80))
    assert (mask[20, 30], mask[5, 5], mask[8, 20], mask[50, 70]) == (1, 0, 1, 0)
    assert read_marks([], [], []) is None


def test_the_same_clicks_go_on_and_others_are_refused(program: Program) -> None:
    at = inside(program)
    predict(program, "--click", at, "-1,1")
    assert "3 done before" in predict(program, f"--click={at}", "--click=-1,1").out
    outcome = predict(program, "--click", at)
    assert outcome.code == 2
    assert "mask was" in outcome.err and "--overwrite" in outcome.err
    outcome = predict(program, "--click", at, "-1,1", "--unsaid", "background")
    assert outcome.code == 2
    assert "unsaid was not given, now background" in outcome.err


def test_what_is_unsaid_may_be_chosen(program: Program) -> None:
    predict(program, "--click", inside(program), "--unsaid", "border")
    (mask,) = program.model.masks
    assert {int(v) for v in mask.unique()} == {0, 1, 255}
    assert (mask[0] == 0).all()


def test_annotations_from_files_serve_as_masks(program: Program) -> None:
    x, y = map(float, inside(program).split(","))
    file = program.folder / "support.json"
    file.write_text(Annotation().point(x, y).point(1, 1, positive=False).to_json())
    outcome = program.run(
        *("predict", "--support", program.folder / "support.png", file),
        *("--query", program.folder / "photos", "--out", program.results),
    )
    assert (outcome.code, outcome.err) == (0, "")
    file.write_text("{}")
    outcome = program.run(
        *("predict", "--support", program.folder / "support.png", file),
        *("--query", program.folder / "photos", "--out", program.folder / "other"),
    )
    assert outcome.code == 2
    assert "support.json': annotation: expected JSON of Annotation.to_json" in outcome.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--click", "30"], "--click: expected X,Y, or -X,Y for the background, got '30'"),
        (["--click", "a,b"], "--click: expected X,Y"),
        (["--click", "3,-4"], "--click: expected X,Y"),
        (["--scribble", "1,2,3"], "--scribble: expected X,Y,X,Y,..."),
        (["--box", "1,2,3"], "--box: expected LEFT,TOP,RIGHT,BOTTOM"),
        (["--box", "9,2,3,8"], "box: expected left < right"),
        (["--click", "3,4", "--unsaid", "nothing"], "--unsaid: expected one of auto"),
        (["--click", "-3,4"], "at least one positive mark, got only background"),
        (["--click", "400,4"], "points inside of the image, 40 pixels wide and 30 high"),
        ([], "--support: expected an image and its mask"),
    ],
)
def test_bad_marks_are_named(program: Program, options: list[str], message: str) -> None:
    outcome = predict(program, *options)
    assert outcome.code == 2
    assert message in " ".join(outcome.err.replace("│", " ").split())
    assert not list(program.results.glob("*.png"))


def test_clicks_are_of_one_image(program: Program) -> None:
    outcome = program.predict("--click", "3,4")
    assert outcome.code == 2
    assert "annotate one image" in " ".join(outcome.err.split())


def test_the_program_segments_what_was_clicked(tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights = tmp_path / "model.safetensors"
    create_model("mlc", encoder="resnet18", layers=("layer1",)).save(weights)
    pixels = np.random.default_rng(0).integers(0, 60, (60, 80, 3), dtype=np.uint8)
    pixels[15:45, 20:60] += 180
    photo, out = tmp_path / "photo.png", tmp_path / "out"
    Image.fromarray(pixels).save(photo)
    done = run(
        *("predict", "--method", "mlc", "--weights", weights),
        *("--backbone", "resnet18", "--layers", "layer1", "--size", "80"),
        *("--support", photo, "--click", "40,30", "-3,3", "-70,50"),
        *("--query", photo, "--out", out),
    )
    assert done.returncode == 0, done.stderr
    with Image.open(out / "photo_mask.png") as file:
        found = np.asarray(file) == 1
    truth = np.zeros((60, 80), bool)
    truth[15:45, 20:60] = True
    assert (found & truth).sum() / (found | truth).sum() > 0.6
    (way,) = json.loads((out / "predictions.json").read_text())["settings"]["ways"]
    assert '"kind": "point"' in way["shots"][0]["mask"]
