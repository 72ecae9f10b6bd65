from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor

from fastfss.encoders import create_encoder, panet_vgg
from fastfss.weights import CheckpointError, save_checkpoint
from tests.encoders.helpers import assert_maps_close, images

CONVOLUTIONS = {0: (0, 2), 2: (0, 2), 4: (0, 2, 4), 6: (0, 2, 4), 8: (0, 2, 4)}


def filled(seed: int = 0) -> panet_vgg.PANetVGG:
    encoder = create_encoder("panet_vgg16").eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.ndim == 1:
                parameter.uniform_(-0.2, 0.2, generator=generator)
    return encoder


def test_key_names_shapes_and_order_are_the_published_ones() -> None:
    shapes, inputs = {}, 3
    for stage, channels in zip(CONVOLUTIONS, (64, 128, 256, 512, 512), strict=True):
        for place in CONVOLUTIONS[stage]:
            shapes[f"body.{stage}.{place}.weight"] = (channels, inputs, 3, 3)
            shapes[f"body.{stage}.{place}.bias"] = (channels,)
            inputs = channels
    state = create_encoder("panet_vgg16").state_dict()
    assert [(key, tuple(tensor.shape)) for key, tensor in state.items()] == list(shapes.items())
    assert len(state) == 26


@torch.no_grad()
def test_maps_are_those_of_the_published_layers() -> None:
    """Written out with functions: 3x3 poolings, the fourth of stride 1, no ReLU at the end."""
    encoder = filled()
    state = encoder.state_dict()
    x = images(81, 57)
    wanted: dict[str, Tensor] = {}
    for number, (stage, places) in enumerate(CONVOLUTIONS.items(), start=1):
        if number > 1:
            x = torch.nn.functional.max_pool2d(x, 3, stride=1 if number == 5 else 2, padding=1)
        for place in places:
            weight, bias = (state[f"body.{stage}.{place}.{leaf}"] for leaf in ("weight", "bias"))
            reach = 2 if number == 5 else 1
            x = torch.nn.functional.conv2d(x, weight, bias, padding=reach, dilation=reach)
            if (stage, place) != (8, 4):
                x = x.relu()
        wanted[f"conv{number}_{len(places)}"] = x
    found = encoder(images(81, 57))
    assert_maps_close(found, wanted, 1e-6)
    assert found["conv5_3"].min() < 0
    assert_maps_close(encoder(images(81, 57), ["conv3_3"]), {"conv3_3": wanted["conv3_3"]}, 1e-6)


@torch.no_grad()
def test_417_pixels_give_53_positions() -> None:
    maps = create_encoder("panet_vgg16", last="conv3_3")(images(417, 417))
    assert [maps[name].shape[-1] for name in maps] == [417, 209, 105]
    head = create_encoder("panet_vgg16").body[5:]
    assert head(maps["conv3_3"]).shape == (1, 512, 53, 53)


@pytest.mark.parametrize("layout", ["torchvision", "published", "backbone", "encoder", "vgg16"])
def test_every_published_layout_loads(layout: str, tmp_path) -> None:
    encoder = filled()
    own = encoder.state_dict()
    with torch.device("meta"):
        reference = torchvision.models.vgg16(weights=None).features.state_dict()
    # The first 26 tensors of torchvision's file, in its order.
    in_order = zip(reference, own.values(), strict=True)
    content = {
        "torchvision": {f"features.{key}": value for key, value in in_order}
        | {"classifier.0.bias": torch.ones(1)},
        "published": {
            f"module.encoder.backbone.features.{key.removeprefix('body.')}": value
            for key, value in own.items()
        },
        "backbone": {
            f"backbone.features.{key.removeprefix('body.')}": value for key, value in own.items()
        },
        "encoder": own,
        "vgg16": dict(zip(create_encoder("vgg16").state_dict(), own.values(), strict=True)),
    }[layout]
    if layout == "published":
        path = tmp_path / "weights.pth"
        torch.save({"state_dict": content}, path)
    else:
        path = tmp_path / "weights.safetensors"
        save_checkpoint(path, content)
    found = create_encoder("panet_vgg16", weights=path).state_dict()
    assert list(found) == list(own)
    assert all(torch.equal(found[key], own[key]) for key in own)


@torch.no_grad()
def test_a_file_of_the_first_stages_gives_their_maps(tmp_path) -> None:
    encoder = filled()
    shallow = create_encoder("panet_vgg16", last="conv3_3")
    shallow.load_state_dict(
        {key: value for key, value in encoder.state_dict().items() if int(key.split(".")[1]) < 5}
    )
    save_checkpoint(tmp_path / "shallow.safetensors", shallow.state_dict())
    again = create_encoder("panet_vgg16", weights=tmp_path / "shallow.safetensors")
    assert [feature.name for feature in again.features] == ["conv1_2", "conv2_2", "conv3_3"]
    assert_maps_close(again(images(33, 40)), shallow(images(33, 40)), 0.0)


def test_imagenet_means_torchvisions_vgg16(monkeypatch) -> None:
    asked = []
    tensors = filled().state_dict()
    names = create_encoder("vgg16").state_dict()
    published = {
        key.replace("body.", "features."): value
        for key, value in zip(names, tensors.values(), strict=True)
    }

    def download(name: str) -> dict[str, Tensor]:
        asked.append(name)
        return published | {"classifier.6.bias": torch.ones(1000)}

    monkeypatch.setattr(panet_vgg, "download", download)
    found = create_encoder("panet_vgg16", weights="imagenet").state_dict()
    assert asked == ["vgg16"]
    assert all(torch.equal(found[key], tensors[key]) for key in tensors)


def test_other_files_and_names_are_refused(tmp_path) -> None:
    save_checkpoint(tmp_path / "bn.safetensors", create_encoder("vgg16_bn").state_dict())
    with pytest.raises(CheckpointError, match=r"does not fit PANetVGG"):
        create_encoder("panet_vgg16", weights=tmp_path / "bn.safetensors")
    with pytest.raises(ValueError, match="name: expected panet_vgg16, got 'vgg19'"):
        panet_vgg.PANetVGG("vgg19")
