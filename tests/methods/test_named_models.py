"""create_model("default") and the other models with a name."""

from __future__ import annotations

import socket

import numpy as np
import pytest
import torch
from PIL import Image

import fastfss
from fastfss.cli import main
from fastfss.methods import NAMED_MODELS, registry
from fastfss.weights import CheckpointError, packaged, packaged_weights
from fastfss.weights.check import main as check
from fastfss.weights.check import scene


def test_the_default_model_is_ready_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    model = fastfss.create_model("default")
    assert not model.training
    assert "random" not in (model.weights_origin, model.head_origin)
    image, mask = scene("star", 0)
    task = model.fit([(image, mask)], name="star")
    query, truth = scene("star", 5)
    result = model.predict(query, task)
    found = result.mask()
    assert (found & (truth == 1)).sum() / (found | (truth == 1)).sum() > 0.8
    assert result.is_here()


def test_its_weights_are_the_recorded_ones_and_work(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["check"])
        assert check() == 0
    assert capsys.readouterr().out.count("as made") == 2


def test_they_are_small_and_tell_their_licence() -> None:
    path = packaged_weights("default.safetensors")
    assert path.stat().st_size < 12e6
    about = fastfss.weights.read_metadata(path)
    assert about["method"] == "cue-fusion"
    assert about["licence"] == "Apache-2.0"
    assert {"steps", "seed", "trained on"} <= about.keys()


def test_a_broken_installation_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(packaged, "FOLDER", tmp_path)
    with pytest.raises(CheckpointError, match=r"default\.safetensors: missing"):
        fastfss.create_model("default")


def test_the_encoder_of_a_named_model_cannot_be_another() -> None:
    with pytest.raises(ValueError, match=r"encoder: expected None.*mobilenet_v2_tf.*resnet18"):
        fastfss.create_model("default", encoder="resnet18")


def test_size_and_options_reach_the_method() -> None:
    assert fastfss.create_model("default", size=320).size == 320
    with pytest.raises(TypeError, match=r"options: .*refine"):
        fastfss.create_model("default", refine=True)


def test_the_large_model_is_dinov2_by_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm")
    asked = {}

    def random_weights(name: str, *, weights: object, **options: object) -> object:
        asked.update(name=name, weights=weights)
        # A shallow one of the same kind is quick.
        return fastfss.create_encoder("timm:vit_small_patch14_reg4_dinov2", depth=12, **options)

    monkeypatch.setattr(registry, "create_encoder", random_weights)
    model = fastfss.create_model("default-large", size=98)
    assert asked == {"name": "timm:vit_small_patch14_reg4_dinov2.lvd142m", "weights": "imagenet"}
    assert model.method == "ssp"
    image, mask = scene("ring", 0)
    with torch.no_grad():
        assert model.predict(image, model.fit([(image, mask)])).labels.shape == image.shape[:2]


def test_every_name_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    out = capsys.readouterr().out
    assert all(name in out and named.about in out for name, named in NAMED_MODELS.items())
    with pytest.raises(
        ValueError, match="method: expected one of default, default-video, default-large, amp"
    ):
        fastfss.create_model("best")


def test_predict_takes_it_where_nothing_is_chosen(tmp_path) -> None:
    for name, number in (("support", 0), ("query", 1)):
        image, mask = scene("bar", number)
        Image.fromarray(image).save(tmp_path / f"{name}.png")
        Image.fromarray(mask * 255).save(tmp_path / f"{name}_mask.png")
    support = [str(tmp_path / "support.png"), str(tmp_path / "support_mask.png")]
    arguments = ["--support", *support, "--query", str(tmp_path / "query.png")]
    assert main(["predict", *arguments, "--out", str(tmp_path / "out")]) == 0
    found = np.asarray(Image.open(tmp_path / "out" / "query_mask.png")) > 0
    truth = np.asarray(Image.open(tmp_path / "query_mask.png")) > 0
    assert (found & truth).sum() / (found | truth).sum() > 0.8
    report = (tmp_path / "out" / "predictions.json").read_text()
    assert '"method": "default"' in report
    assert '"presence": 0.' in report or '"presence": 1.' in report
