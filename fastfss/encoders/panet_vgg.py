"""PANet's VGG-16: overlapping poolings, output stride 8, a signed last map."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn

from fastfss.encoders.base import (
    IMAGENET_NORMALIZATION,
    FeatureInfo,
    StagedEncoder,
    initialise_,
)
from fastfss.encoders.torchvision_encoders import download
from fastfss.errors import expected

# Convolutions and channels of each stage.
_STAGES = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))
# torchvision numbers all layers of VGG-16 in one sequence; ours are "stage.place", in this order.
_OF_TORCHVISION = dict(
    zip(
        (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
        (
            f"{2 * stage}.{2 * place}"
            for stage, (convolutions, _) in enumerate(_STAGES)
            for place in range(convolutions)
        ),
        strict=True,
    )
)
_KEY = re.compile(r"(?:backbone\.)?(?:features|body)\.(\d+(?:\.\d+)?)\.(weight|bias)")


class PANetVGG(StagedEncoder):
    """VGG-16 without batch norm as PANet changed it, maps "conv1_2" to "conv5_3".

    Poolings are 3x3 with padding 1, so that sizes are rounded up. The fourth has stride 1, and the
    last three convolutions have dilation 2 and no ReLU at the end: "conv5_3" has stride 8 and is
    signed. The other maps are taken after the last ReLU of a stage and before its pooling.

    Source: Wang et al., ICCV 2019 (PANet).

    A file of weights may be torchvision's vgg16, which PANet starts from, or a PANet checkpoint.

    Args:
        name: "panet_vgg16".

    Raises:
        ValueError: another name.
    """

    ignored_keys = ("classifier.*",)

    def __init__(self, name: str = "panet_vgg16") -> None:
        if name != "panet_vgg16":
            raise expected("name", "panet_vgg16", repr(name))
        super().__init__(
            name,
            [
                FeatureInfo(f"conv{stage + 1}_{convolutions}", channels, min(2**stage, 8))
                for stage, (convolutions, channels) in enumerate(_STAGES)
            ],
            IMAGENET_NORMALIZATION,
            {
                "conv1_2": ("body.0",),
                "conv2_2": ("body.1", "body.2"),
                "conv3_3": ("body.3", "body.4"),
                "conv4_3": ("body.5", "body.6"),
                "conv5_3": ("body.7", "body.8"),
            },
        )
        parts: list[nn.Module] = []
        inputs = 3
        for stage, (convolutions, channels) in enumerate(_STAGES):
            if stage:
                parts.append(nn.MaxPool2d(3, stride=1 if stage == 4 else 2, padding=1))
            last = stage == len(_STAGES) - 1
            parts.append(_stage(inputs, channels, convolutions, last=last))
            inputs = channels
        # Not called "features" as in the published files, because that is the list of maps here.
        self.body = nn.Sequential(*parts)
        initialise_(self)

    def own_keys(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of torchvision's vgg16, or of a PANet checkpoint, under our names."""
        return {_own_key(key): tensor for key, tensor in tensors.items()}

    def pretrained(self) -> dict[str, Tensor]:
        """torchvision's ImageNet weights of vgg16, which has the same convolutions."""
        return download("vgg16")


def _own_key(key: str) -> str:
    match = _KEY.fullmatch(key)
    if match is None:
        return key
    place, leaf = match.groups()
    if "." not in place:
        place = _OF_TORCHVISION.get(int(place), place)
    return f"body.{place}.{leaf}"


def _stage(inputs: int, channels: int, convolutions: int, *, last: bool) -> nn.Sequential:
    """3x3 convolutions, a ReLU after each; dilated, and none after the final one, in the last."""
    reach = 2 if last else 1
    layers: list[nn.Module] = []
    for _ in range(convolutions):
        layers.append(nn.Conv2d(inputs, channels, 3, padding=reach, dilation=reach))
        layers.append(nn.ReLU(inplace=True))
        inputs = channels
    return nn.Sequential(*(layers[:-1] if last else layers))
