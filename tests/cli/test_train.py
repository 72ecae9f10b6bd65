"""`fastfss train`, the command."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastfss.cli import main
from tests.training.shapes import write_shapes

RECIPE = """
about = "shapes"
base = "ssp-pascal"

[model]
encoder = "resnet18"
layers = ["layer2"]

[data]
set = "folder"
folds = "random"
minimum = 50

[transform]
size = 32

[run]
steps = 2
batch = 2

[validation]
every = 2
episodes = 2
minimum = 50

[log]
workers = 0
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("train")
    write_shapes(root / "shapes")
    (root / "own.toml").write_text(RECIPE)
    return root


def test_a_recipe_with_a_set_of_ones_own(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    given = ["train", "own.toml", "--data", "shapes", "--fold", "1", "--weights", "random"]
    changes = ["--set", "optimiser.lr=0.01", "--set", "run.precision=bf16"]
    code = main([*given, *changes, "--progress", "lines"])
    out, err = capsys.readouterr()
    assert code == 0, err
    assert "effective batch 2: 2 episodes x 1 processes x 1 parts; 2 steps" in err
    assert "held-out mIoU" in out
    assert "weights: runs/own-fold1/model.safetensors" in out
    assert Path("runs/own-fold1/model.safetensors").is_file()
    assert (
        main(["train", "own.toml", "--data", "shapes", "--fold", "1", "--weights", "random"]) == 2
    )
    assert "--resume goes on with it" in capsys.readouterr().err


def test_the_list_names_every_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("ssp-pascal ") and "as published" in line for line in lines)
    assert len(lines) > 20


def test_a_recipe_can_be_shown_with_all_it_takes_over(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "ssp-small", "--set", "optimiser.lr=0.5", "--show"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "optimiser.lr = 0.5" in lines
    assert "run.accumulate = 4" in lines
    assert "transform.size = 473" in lines


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nothing"], "no file 'nothing' and no recipe of this name"),
        (["ssp-pascal"], "data.root: expected the folder of the data set (--data), got none"),
        (["own.toml", "--data", "absent"], "absent"),
        (["own.toml", "--weights", ""], "model.weights: expected what to start from"),
        (["own.toml", "--set", "run.stepz=1"], "run.stepz: expected a known key ('steps' perhaps)"),
        (["own.toml", "--set", "steps"], "--set: expected section.key=value, got 'steps'"),
        (["own.toml", "--fold", "9"], "data.fold: expected 0 to 3, got 9"),
        (["own.toml", "--device", "tpu"], "device: expected auto, cpu or cuda, got 'tpu'"),
        (["own.toml", "--progress", "loud"], "progress: expected one of auto, bar, lines, off"),
        ([], "a recipe's name or a TOML file"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str],
    message: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder)
    given = [*arguments]
    if "own.toml" in given and "--data" not in given:
        given += ["--data", "shapes"]
    if "own.toml" in given and "--weights" not in given:
        given += ["--weights", "random"]
    assert main(["train", *given, "--out", "unused"]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
