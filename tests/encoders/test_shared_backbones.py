"""Real weights, where they lie beside the checkout: the network's answer shows that they fit."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastfss.encoders import create_encoder
from fastfss.weights import read_checkpoint
from tests.shared import shared

skimage_data = pytest.importorskip("skimage.data")


def photo(name: str, size: int) -> Tensor:
    """The middle square of one of scikit-image's photographs, (1, 3, size, size) in [0, 1]."""
    image = torch.from_numpy(getattr(skimage_data, name)()).permute(2, 0, 1)[None].float() / 255
    height, width = image.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = image[..., top : top + side, left : left + side]
    return F.interpolate(square, (size, size), mode="bilinear", antialias=True)


def classes() -> list[str]:
    return shared("data/backbones/imagenet_classes.txt").read_text().splitlines()


PHOTOS = pytest.mark.parametrize(
    ("picture", "answer"),
    [("chelsea", "Egyptian cat"), ("coffee", "espresso")],
    ids=["cat", "coffee"],
)


@PHOTOS
@torch.no_grad()
def test_mobilenet_names_what_is_in_the_photo(picture, answer):
    path = shared("data/backbones/mobilenet_v2.safetensors")
    encoder = create_encoder("mobilenet_v2_tf", weights=path).eval()
    file = read_checkpoint(path)
    x = encoder.normalization.apply(photo(picture, 224))
    y = F.relu6(F.conv2d(encoder(x)["layer4"], file["head.weight"], file["head.bias"]))
    scores = F.linear(y.mean((2, 3)), file["classifier.weight"], file["classifier.bias"])
    probability, index = scores.softmax(1).max(1)
    assert classes()[index] == answer
    assert probability > 0.4


@PHOTOS
@torch.no_grad()
def test_squeezenet_names_what_is_in_the_photo(picture, answer):
    path = shared("data/backbones/squeezenet1_1.safetensors")
    encoder = create_encoder("squeezenet1_1", weights=path).eval()
    file = {key: value.float() for key, value in read_checkpoint(path).items()}
    x = encoder.normalization.apply(photo(picture, 227))
    y = F.conv2d(encoder(x)["fire9"], file["conv10.weight"], file["conv10.bias"]).relu()
    probability, index = y.mean((2, 3)).softmax(1).max(1)
    assert classes()[index] == answer
    assert probability > 0.35


@torch.no_grad()
def test_folded_resnet18_offers_what_its_file_holds():
    path = shared("data/backbones/resnet18_to_layer3.safetensors")
    encoder = create_encoder("resnet18", weights=path).eval()
    assert [feature.name for feature in encoder.features] == ["layer1", "layer2", "layer3"]
    assert encoder.options == {"last": "layer3", "folded": True}
    with pytest.raises(ValueError, match="no feature map 'layer4'"):
        encoder(torch.zeros(1, 3, 32, 32), ["layer4"])
    with pytest.raises(ValueError, match=r"'layer4' is not in .*; its deepest map is 'layer3'"):
        create_encoder("resnet18", weights=path, last="layer4")
    file = read_checkpoint(path)
    assert encoder.state_dict().keys() == file.keys()
    assert all(torch.equal(encoder.state_dict()[key], value) for key, value in file.items())


@torch.no_grad()
def test_resnet18_separates_a_cat_from_its_surroundings():
    """Two crops of one cat are more alike than a cat and a cup; of random weights that is untrue.

    Trained features are what the weights are for, and a wrong normalisation, padding or order of
    layers would lose them.
    """
    path = shared("data/backbones/resnet18_to_layer3.safetensors")
    encoder = create_encoder("resnet18", weights=path).eval()
    pictures = [photo("chelsea", 320), photo("chelsea", 320).flip(3), photo("coffee", 320)]

    def described(image: Tensor) -> Tensor:
        y = encoder(encoder.normalization.apply(image), ["layer3"])["layer3"]
        return F.normalize(y.flatten(2).mean(2) - y.flatten(2).mean(), dim=1)

    cat, mirrored, cup = map(described, pictures)
    assert float((cat * mirrored).sum()) > 0.98
    assert float((cat * cup).sum()) < 0.8
