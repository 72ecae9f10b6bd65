"""PFENet's backbones: a deep-stem ResNet dilated in two stages, and VGG-16 with ceiling pools."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from fastfss.encoders._bottleneck import Bottleneck
from fastfss.encoders.base import (
    IMAGENET_NORMALIZATION,
    FeatureInfo,
    StagedEncoder,
    initialise_,
)
from fastfss.encoders.timm_encoder import pretrained_state_dict
from fastfss.encoders.torchvision_encoders import download
from fastfss.errors import expected
from fastfss.weights import KeyMap, deep_stem_keys

# Bottlenecks of layer1 to layer4.
_DEPTHS = {
    "pfenet_resnet50": (3, 4, 6, 3),
    "pfenet_resnet101": (3, 4, 23, 3),
    "pfenet_resnet152": (3, 8, 36, 3),
}
_WIDTHS = (64, 128, 256, 512)  # of the 3x3 convolutions of layer1 to layer4
_STRIDES = (1, 2, 1, 1)
_DILATIONS = (1, 1, 2, 4)

# The stem of the encoder file, in our layout of it (ENCODER_KEYS), under PFENet's names.
_STEM = KeyMap("PFENet stem", (("conv1.", "layer0."), ("bn1.", "layer0.7.")))


class PFENetResNet(StagedEncoder):
    """A ResNet with a stem of three 3x3 convolutions, dilation 2 in layer3 and 4 in layer4.

    Unlike in `DeepStemResNet` the first block of a stage is dilated too, there is a layer4, and
    every stage ends with a ReLU. Names of parameters and buffers are those of PFENet's checkpoints.
    A file of weights may also be the encoder file in either naming of its stem.

    Source: Tian et al., TPAMI 2020.

    Args:
        name: "pfenet_resnet50", "pfenet_resnet101" or "pfenet_resnet152".

    Raises:
        ValueError: another name.
    """

    ignored_keys = ("fc.*",)

    def __init__(self, name: str = "pfenet_resnet50") -> None:
        if name not in _DEPTHS:
            raise expected("name", f"one of {', '.join(_DEPTHS)}", repr(name))
        super().__init__(
            name,
            (
                FeatureInfo("layer0", 128, 4),
                FeatureInfo("layer1", 256, 4),
                FeatureInfo("layer2", 512, 8),
                FeatureInfo("layer3", 1024, 8),
                FeatureInfo("layer4", 2048, 8),
            ),
            IMAGENET_NORMALIZATION,
            {f"layer{stage}": (f"layer{stage}",) for stage in range(5)},
        )
        self.layer0 = nn.Sequential(
            *_convolution(3, 64, stride=2),
            *_convolution(64, 64),
            *_convolution(64, 128),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        inputs = 128
        for stage, (width, blocks, stride, dilation) in enumerate(
            zip(_WIDTHS, _DEPTHS[name], _STRIDES, _DILATIONS, strict=True), start=1
        ):
            first = Bottleneck(inputs, width, stride=stride, dilation=dilation, project=True)
            inputs = 4 * width
            later = (Bottleneck(inputs, width, dilation=dilation) for _ in range(1, blocks))
            self.add_module(f"layer{stage}", nn.Sequential(first, *later))
        initialise_(self)
        self.train(self.training)  # puts the batch norms into evaluation mode

    def own_keys(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a published file under this encoder's names."""
        keys = deep_stem_keys(tensors)
        return {
            _STEM.to_ours(keys.to_ours(key).removeprefix("encoder.")): tensor
            for key, tensor in tensors.items()
        }

    def pretrained(self) -> dict[str, Tensor]:
        """ImageNet weights of the undilated network of the same shapes, by timm's download.

        PFENet's authors start from another training of these shapes.
        """
        depth = self.name.removeprefix("pfenet_resnet")
        return pretrained_state_dict(f"resnet{depth}s.gluon_in1k")


# Channels of the convolutions of each group; a pool follows all groups but the last.
_VGG_GROUPS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_VGG_STRIDES = (2, 4, 8, 16, 16)


class PFENetVGG(StagedEncoder):
    """VGG-16 with batch norm; layer0 to layer3 end with a pool that rounds sizes up.

    A file of weights may be PFENet's checkpoint or torchvision's vgg16_bn.

    Source: Tian et al., TPAMI 2020.
    """

    ignored_keys = ("classifier.*",)

    def __init__(self) -> None:
        super().__init__(
            "pfenet_vgg16_bn",
            [
                FeatureInfo(f"layer{group}", channels[-1], stride)
                for group, (channels, stride) in enumerate(
                    zip(_VGG_GROUPS, _VGG_STRIDES, strict=True)
                )
            ],
            IMAGENET_NORMALIZATION,
            {f"layer{group}": (f"layer{group}",) for group in range(5)},
        )
        # torchvision numbers all layers through, PFENet those of each group.
        self._torchvision: list[tuple[str, str]] = []
        inputs, last = 3, len(_VGG_GROUPS) - 1
        for group, widths in enumerate(_VGG_GROUPS):
            layers: list[nn.Module] = []
            for width in widths:
                layers += _convolution(inputs, width, bias=True)
                inputs = width
            if group != last:
                layers.append(nn.MaxPool2d(2, stride=2, ceil_mode=True))
            start = len(self._torchvision)
            self._torchvision += [
                (f"features.{start + index}.", f"layer{group}.{index}.")
                for index in range(len(layers))
            ]
            self.add_module(f"layer{group}", nn.Sequential(*layers))
        initialise_(self)
        self.train(self.training)  # puts the batch norms into evaluation mode

    def own_keys(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a published file or of torchvision's under this encoder's names."""
        keys = KeyMap("torchvision", tuple(self._torchvision))
        return {keys.to_ours(key): tensor for key, tensor in tensors.items()}

    def pretrained(self) -> dict[str, Tensor]:
        """torchvision's ImageNet weights."""
        return download("vgg16_bn")


def _convolution(
    inputs: int, outputs: int, *, stride: int = 1, bias: bool = False
) -> tuple[nn.Conv2d, nn.BatchNorm2d, nn.ReLU]:
    """A 3x3 convolution, its batch norm and a ReLU."""
    return (
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=bias),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )
