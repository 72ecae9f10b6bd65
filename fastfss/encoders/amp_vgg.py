"""VGG-16 as AMP uses it: pools that round up, dilation at the ends of the last two blocks."""

from __future__ import annotations

from collections import OrderedDict
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
from fastfss.weights import KeyMap

_NETWORKS = {"amp_vgg16": "vgg16", "amp_vgg16_bn": "vgg16_bn"}
# Of each block: channels, and the padding and dilation of each of its convolutions.
_BLOCKS = (
    (64, (1, 1)),
    (128, (1, 1)),
    (256, (1, 1, 1)),
    (512, (1, 1, 2)),
    (512, (2, 4, 4)),
)
_RENUMBERED = 4  # from this block on the published keys count from 0, before it as torchvision


class AMPVGG(StagedEncoder):
    """VGG-16 with maps "pool1" to "pool5", after each pooling, at strides 2, 4, 8, 16 and 32.

    The poolings round up: 321 pixels give 161, 81, 41, 21 and 11. The last convolution of the
    fourth block has dilation 2, those of the fifth 2, 4 and 4.

    Source: Simonyan and Zisserman, ICLR 2015, as lizhaoliu-Lec/DENet (ACM MM 2020) uses it.

    Args:
        name: "amp_vgg16" or "amp_vgg16_bn".

    Raises:
        ValueError: another name.
    """

    ignored_keys = ("classifier.*",)

    def __init__(self, name: str = "amp_vgg16") -> None:
        if name not in _NETWORKS:
            raise expected("name", f"one of {', '.join(_NETWORKS)}", repr(name))
        numbers = range(1, len(_BLOCKS) + 1)
        super().__init__(
            name,
            [FeatureInfo(f"pool{n}", _BLOCKS[n - 1][0], 2**n) for n in numbers],
            IMAGENET_NORMALIZATION,
            {f"pool{n}": (f"conv{n}", f"pool{n}") for n in numbers},
        )
        renamed = []  # torchvision's prefixes and ours
        inputs, index = 3, 0
        for number, (channels, dilations) in enumerate(_BLOCKS, start=1):
            start = index if number >= _RENUMBERED else 0
            layers: OrderedDict[str, nn.Module] = OrderedDict()
            for dilation in dilations:
                parts: list[nn.Module] = [
                    nn.Conv2d(inputs, channels, 3, padding=dilation, dilation=dilation)
                ]
                if name.endswith("_bn"):
                    parts.append(nn.BatchNorm2d(channels))
                for part in (*parts, nn.ReLU(inplace=True)):
                    layers[str(index - start)] = part
                    renamed.append((f"features.{index}.", f"conv{number}.{index - start}."))
                    index += 1
                inputs = channels
            self.add_module(f"conv{number}", nn.Sequential(layers))
            self.add_module(f"pool{number}", nn.MaxPool2d(2, ceil_mode=True))
            index += 1
        self._torchvision = KeyMap("torchvision's VGG-16", tuple(renamed))
        initialise_(self)
        self.train(self.training)  # puts the batch norms into evaluation mode

    def own_keys(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of torchvision's file under our names."""
        return {self._torchvision.to_ours(key): tensor for key, tensor in tensors.items()}

    def pretrained(self) -> dict[str, Tensor]:
        """torchvision's ImageNet weights of the network with poolings that round down."""
        return download(_NETWORKS[self.name])
