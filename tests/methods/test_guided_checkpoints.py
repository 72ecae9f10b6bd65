"""Guided networks by name: sizes, published checkpoints, what a file holds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fastfss import GuidedEarly, GuidedLate, create_model, list_models, model_info
from fastfss.encoders import create_encoder
from fastfss.methods import (
    GUIDED_NETWORKS,
    FCN32s,
    InteractiveEarly,
    InteractiveLate,
    published_state,
)
from fastfss.weights import CheckpointError, save_checkpoint
from tests.methods.guided_networks import network


def test_an_encoder_file_with_a_classifier_called_head_is_no_whole_checkpoint(
    tmp_path: Path,
) -> None:
    encoder = create_encoder("mobilenet_v2_tf")
    file = {**encoder.state_dict(), "head.weight": torch.zeros(2, 3), "head.bias": torch.zeros(2)}
    save_checkpoint(tmp_path / "encoder.safetensors", file, {})
    model = create_model(
        "guided-late",
        encoder="mobilenet_v2_tf",
        layers=("layer4",),
        weights=tmp_path / "encoder.safetensors",
    )
    assert model.head_origin == "random"
    assert model.weights_origin.endswith("encoder.safetensors")


def test_only_the_few_shot_networks_are_listed() -> None:
    listed, every = list_models(), list_models(every=True)
    assert {"guided-early", "guided-late"} <= set(listed)
    assert set(every) - set(listed) == {"fcn32s", "interactive-early", "interactive-late"}
    assert {network.method for network in GUIDED_NETWORKS.values()} <= set(every)
    assert model_info("cofeat-late") is GuidedLate.info
    with pytest.raises(ValueError, match=r"method: expected one of default, .*interactive-late"):
        create_model("interactive")


@pytest.mark.parametrize(
    ("name", "kind", "million"),
    [
        ("fcn32s-lite", FCN32s, 23.0),
        ("fgbg-lite", FCN32s, 21.2),
        ("interactive-early-lite", InteractiveEarly, 21.2),
        ("interactive-late-glob-lite", GuidedLate, 21.4),
        ("cofeat-early", GuidedEarly, 42.4),
        ("cofeat-late-lite", GuidedLate, 21.4),
        ("cofeat-late-lite-unshared", GuidedLate, 21.8),
        ("fcn32s", FCN32s, 136.2),
        ("fgbg", FCN32s, 134.3),
        ("interactive-early", InteractiveEarly, 134.3),
        ("interactive-late", InteractiveLate, 184.6),
        ("interactive-late-glob", GuidedLate, 184.6),
        ("cofeat-late", GuidedLate, 184.6),
    ],
)
def test_published_names_give_networks_of_the_published_size(
    name: str, kind: type, million: float
) -> None:
    with torch.device("meta"):
        model = create_model(name)
    assert type(model) is kind
    # The published counts hold the fixed kernels.
    count = sum(tensor.numel() for tensor in published_state(model).values()) / 1e6
    assert round(count, 1) == million


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("cofeat-late-lite", {"encoder.fc6.weight", "head.fc7.bias", "z", "anno_enc.weight"}),
        (
            "cofeat-early",
            {"supp_encoder.conv1_1.weight", "qry_encoder.fc6.bias", "head.score.bias"},
        ),
        ("interactive-early-lite", {"encoder.fc7.weight", "head.weight", "decoder.weight"}),
    ],
)
def test_a_published_checkpoint_loads(name: str, own: set[str], tmp_path: Path) -> None:
    model = create_model(name)
    state = published_state(model)
    assert own <= set(state)
    assert state["decoder.weight"].shape[2:] == (64, 64)
    save_checkpoint(tmp_path / "published.safetensors", state, {})
    torch.manual_seed(9)
    again = create_model(name, weights=tmp_path / "published.safetensors")
    assert again.head_origin.endswith("published.safetensors")
    for key, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor)


def test_a_checkpoint_with_another_annotation_kernel_is_refused(tmp_path: Path) -> None:
    state = published_state(network("cofeat-late-lite"))
    state["anno_enc.weight"] = state["anno_enc.weight"] * 1024
    save_checkpoint(tmp_path / "other.safetensors", state, {})
    with pytest.raises(CheckpointError, match=r"anno_enc\.weight: expected the fixed bilinear"):
        create_model("cofeat-late-lite", weights=tmp_path / "other.safetensors")
