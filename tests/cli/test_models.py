"""fastfss models, run as the program."""

from __future__ import annotations

import json
import subprocess

import pytest

import fastfss
from fastfss import list_encoders, list_models, model_info
from tests.cli.program import run


def models(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run("models", *arguments)


def test_every_method_is_listed_with_its_paper() -> None:
    done = models()
    assert done.returncode == 0, done.stderr
    for name in list_models():
        card = model_info(name)
        assert f"{name}  ({card.title}, {card.venue}" in done.stdout
        assert card.paper in done.stdout


def test_json_holds_what_the_cards_hold() -> None:
    done = models("ssp", "--json")
    card = json.loads(done.stdout)["ssp"]
    assert card["venue"] == "ECCV 2022"
    assert card["scores"][0]["mean"] == 61.7


def test_one_method_shows_its_published_figures() -> None:
    done = models("ssp")
    wanted = "PASCAL-5i ResNet-50 1-way 1-shot: 61.4 67.8 66.5 50.9 = 61.7 mIoU [repository]"
    assert wanted in done.stdout


def test_an_unknown_method_is_one_line() -> None:
    done = models("sps")
    assert done.returncode == 2
    assert done.stderr.startswith("error: method: expected one of ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", list_models())
def test_published_means_are_those_of_their_folds(name: str) -> None:
    """To 0.3: some printed means differ from their own folds by that much."""
    for score in model_info(name).scores:
        if score.folds:
            assert sum(score.folds) / len(score.folds) == pytest.approx(score.mean, abs=0.3), score


@pytest.mark.parametrize("name", list_models())
def test_create_model_works_with_every_backbone_of_the_list(name: str) -> None:
    for encoder in model_info(name).encoders:
        assert encoder in list_encoders()
        model = fastfss.create_model(name, encoder=encoder)
        assert model.method == name
        assert model.encoder.name == encoder
