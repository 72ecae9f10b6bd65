from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from fastfss.encoders import create_encoder
from fastfss.encoders.amp_vgg import AMPVGG
from tests.encoders.helpers import assert_maps_close, images, with_statistics

NAMES = ("amp_vgg16", "amp_vgg16_bn")


def torchvisions(name: str) -> nn.Sequential:
    """torchvision's layers with AMP's dilations and poolings."""
    torch.manual_seed(0)
    with torch.device("meta"):  # the classifier alone would take 2 s
        layers = torchvision.models.get_model(name.removeprefix("amp_"), weights=None).features
    layers = layers.to_empty(device="cpu")
    for parameter in layers.parameters():
        nn.init.normal_(parameter, std=0.03)
    convolutions = [part for part in layers if isinstance(part, nn.Conv2d)]
    for part, rate in zip(convolutions[-6:], (1, 1, 2, 2, 4, 4), strict=True):
        part.padding = part.dilation = (rate, rate)
    for part in layers:
        if isinstance(part, nn.MaxPool2d):
            part.ceil_mode = True
    return with_statistics(layers).eval()


def pooled(layers: nn.Sequential, x: torch.Tensor) -> dict[str, torch.Tensor]:
    maps = {}
    for part in layers:
        x = part(x)
        if isinstance(part, nn.MaxPool2d):
            maps[f"pool{len(maps) + 1}"] = x
    return maps


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_torchvisions_own_file_fits(name, tmp_path):
    layers = torchvisions(name)
    file = {f"features.{key}": tensor for key, tensor in layers.state_dict().items()}
    torch.save({**file, "classifier.0.weight": torch.zeros(3, 3)}, tmp_path / "network.pth")
    encoder = create_encoder(name, weights=tmp_path / "network.pth").eval()
    assert encoder.options == {}
    x = images(65, 82)
    assert_maps_close(encoder(x), pooled(layers, x), 1e-6)


@torch.no_grad()
def test_poolings_round_up():
    maps = create_encoder("amp_vgg16").eval()(images(321, 33))
    assert [one.shape[2] for one in maps.values()] == [161, 81, 41, 21, 11]
    assert [one.shape[3] for one in maps.values()] == [17, 9, 5, 3, 2]


@torch.no_grad()
def test_a_folded_copy_is_equal():
    torch.manual_seed(0)
    encoder = with_statistics(create_encoder("amp_vgg16_bn")).eval()
    folded = encoder.fold_batch_norm(channels_last=True)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in folded.modules())
    x = images(49, 65)
    assert_maps_close(folded(x), encoder(x), 1e-5)


def test_another_name_is_refused():
    with pytest.raises(ValueError, match="name: expected one of amp_vgg16, amp_vgg16_bn"):
        AMPVGG("vgg16")
