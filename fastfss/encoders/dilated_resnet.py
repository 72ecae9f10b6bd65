"""torchvision's ResNet with the strides of layer3 and layer4 replaced by dilation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from fastfss.encoders._bottleneck import residual_stage
from fastfss.encoders.base import (
    IMAGENET_NORMALIZATION,
    FeatureInfo,
    StagedEncoder,
    initialise_,
)
from fastfss.encoders.torchvision_encoders import download
from fastfss.errors import expected


@dataclass(frozen=True)
class _Network:
    """One of the networks.

    Attributes:
        torchvision: the network of torchvision whose weights fit.
        blocks: bottlenecks of layer1 to layer4.
        last_relu: whether layer4 ends in a ReLU.
    """

    torchvision: str
    blocks: tuple[int, int, int, int]
    last_relu: bool = True


_NETWORKS = {
    "dilated_resnet50": _Network("resnet50", (3, 4, 6, 3)),
    "dilated_resnet101": _Network("resnet101", (3, 4, 23, 3)),
    "ppnet_resnet50": _Network("resnet50", (3, 4, 6, 3), last_relu=False),
    "ppnet_resnet101": _Network("resnet101", (3, 4, 23, 3), last_relu=False),
}


class DilatedResNet(StagedEncoder):
    """ResNet-50 or -101 with maps "layer1" to "layer4" at strides 4, 8, 8 and 8.

    torchvision's network with `replace_stride_with_dilation=[False, True, True]`: dilation 2 in
    layer3 and 4 in layer4, each after a first block that still has the dilation before it. Names
    and shapes of all entries are torchvision's, so its files fit. In "ppnet_resnet50" and "101" the
    last block of layer4 has no ReLU, so that the map is signed; a PPNet checkpoint fits them too.

    Source: He et al., CVPR 2016, as lizhaoliu-Lec/DENet (ACM MM 2020) and PPNet (Liu et al., ECCV
    2020) use it.

    Args:
        name: "dilated_resnet50", "dilated_resnet101", "ppnet_resnet50" or "ppnet_resnet101".

    Raises:
        ValueError: another name.
    """

    ignored_keys: tuple[str, ...] = ("fc.*",)

    def __init__(self, name: str = "dilated_resnet50") -> None:
        if name not in _NETWORKS:
            raise expected("name", f"one of {', '.join(_NETWORKS)}", repr(name))
        network = _NETWORKS[name]
        super().__init__(
            name,
            (
                FeatureInfo("layer1", 256, 4),
                FeatureInfo("layer2", 512, 8),
                FeatureInfo("layer3", 1024, 8),
                FeatureInfo("layer4", 2048, 8),
            ),
            IMAGENET_NORMALIZATION,
            {
                "layer1": ("conv1", "bn1", "relu", "maxpool", "layer1"),
                "layer2": ("layer2",),
                "layer3": ("layer3",),
                "layer4": ("layer4",),
            },
        )
        first, second, third, fourth = network.blocks
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = residual_stage(64, 64, first)
        self.layer2 = residual_stage(256, 128, second, stride=2)
        self.layer3 = residual_stage(512, 256, third, dilation=2)
        self.layer4 = residual_stage(
            1024, 512, fourth, dilation=4, first_dilation=2, last_relu=network.last_relu
        )
        initialise_(self)
        if not network.last_relu:
            # A PPNet checkpoint holds its heads too.
            self.ignored_keys = ("fc.*", "aspp.*", "latentGraph.*")
        self.train(self.training)  # puts the batch norms into evaluation mode

    def own_keys(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of torchvision's file, or of a PPNet checkpoint, under our names."""
        return {
            key.removeprefix("encoder.").removeprefix("backbone."): tensor
            for key, tensor in tensors.items()
        }

    def pretrained(self) -> dict[str, Tensor]:
        """torchvision's ImageNet weights of the network without dilation."""
        return download(_NETWORKS[self.name].torchvision)
