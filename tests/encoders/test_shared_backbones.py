"""Real weights, where they lie beside the checkout: the network's answer shows that they fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
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
def test_resnet18_finds_apples_from_one_example():
    """Plain prototype matching; measured 0.785, with random weights 0.45, without the mean and
    standard deviation 0.47.
    """
    folder = shared("data/fss_small/apple")
    path = shared("data/backbones/resnet18_to_layer3.safetensors")
    encoder = create_encoder("resnet18", weights=path).eval()

    def example(number: int) -> tuple[Tensor, Tensor]:
        image = Image.open(folder / f"{number}.jpg").convert("RGB").resize((320, 320))
        mask = Image.open(folder / f"{number}.png").convert("L").resize((320, 320), 0)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
        return described(pixels), torch.from_numpy(np.array(mask) > 127)[None, None]

    def described(image: Tensor) -> Tensor:
        maps = encoder(encoder.normalization.apply(image), ["layer2", "layer3"])
        deep = F.interpolate(maps["layer3"], (40, 40), mode="bilinear", align_corners=True)
        return torch.cat([F.normalize(maps["layer2"], dim=1), F.normalize(deep, dim=1)], 1)

    features, mask = example(1)
    weight = F.interpolate(mask.float(), (40, 40), mode="area")
    prototypes = [(features * w).sum((2, 3), keepdim=True) / w.sum() for w in (weight, 1 - weight)]
    overlaps = []
    for number in range(2, 11):
        features, mask = example(number)
        apple, rest = (F.cosine_similarity(features, p)[:, None] for p in prototypes)
        large = F.interpolate(apple - rest, (320, 320), mode="bilinear", align_corners=True) > 0
        overlaps.append(float((large & mask).sum() / (large | mask).sum()))
    assert sum(overlaps) / len(overlaps) > 0.7
