"""ImageNet networks that return the map of every block, before its ReLU.

The many levels that HSNet (Min et al., ICCV 2021) and DCAMA (Shi et al., ECCV 2022) compare.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from fastfss.encoders._bottleneck import Bottleneck
from fastfss.encoders.base import (
    IMAGENET_NORMALIZATION,
    FeatureInfo,
    StagedEncoder,
    initialise_,
)
from fastfss.encoders.torchvision_encoders import TorchvisionSequential, download
from fastfss.errors import expected

_DEPTHS = {"blocks_resnet50": (3, 4, 6, 3), "blocks_resnet101": (3, 4, 23, 3)}
_STEM = ("conv1", "bn1", "relu", "maxpool")


class EveryBlockResNet(StagedEncoder):
    """ResNet-50 or -101 in torchvision's layout, a map for every bottleneck.

    Map "layer3.5" is the sum that leaves the sixth block of layer3, before its closing ReLU, so
    that it has both signs; the network goes on behind the ReLU.

    Args:
        name: "blocks_resnet50" or "blocks_resnet101".

    Raises:
        ValueError: another name.
    """

    ignored_keys = ("fc.*",)

    def __init__(self, name: str = "blocks_resnet50") -> None:
        if name not in _DEPTHS:
            raise expected("name", f"one of {', '.join(_DEPTHS)}", repr(name))
        depths = _DEPTHS[name]
        features, stages = [], {}
        path = list(_STEM)
        for stage, blocks in enumerate(depths, start=1):
            for block in range(blocks):
                map_name = f"layer{stage}.{block}"
                features.append(FeatureInfo(map_name, 128 * 2**stage, 2 ** (stage + 1)))
                stages[map_name] = (*path, map_name)
                path = ["relu"]
        super().__init__(name, features, IMAGENET_NORMALIZATION, stages)
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()  # not in place: the map before it is returned
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        inputs = 64
        for stage, blocks in enumerate(depths, start=1):
            width = 32 * 2**stage
            first = Bottleneck(
                inputs, width, stride=1 if stage == 1 else 2, project=True, activate=False
            )
            inputs = 4 * width
            later = [Bottleneck(inputs, width, activate=False) for _ in range(blocks - 1)]
            self.add_module(f"layer{stage}", nn.Sequential(first, *later))
        initialise_(self)
        self.train(self.training)  # puts the batch norms into evaluation mode

    def pretrained(self) -> dict[str, Tensor]:
        """torchvision's ImageNet weights."""
        return download(self.name.removeprefix("blocks_"))

    def _drop(self, features: Sequence[FeatureInfo]) -> None:
        for feature in features:
            for path in self._stages.pop(feature.name):
                parent, _, leaf = path.rpartition(".")
                if path != "relu":  # which serves all blocks
                    delattr(self.get_submodule(parent), leaf)


class EveryBlockVGG(TorchvisionSequential):
    """VGG-16 of torchvision, maps "conv4_1" to "conv5_3", each before its ReLU, and "pool5".

    Source: Min et al., ICCV 2021; the pools round sizes down.
    """

    def __init__(self) -> None:
        super().__init__("vgg16")
        self.name = "blocks_vgg16"
        self.body.append(nn.MaxPool2d(2, stride=2))
        self.features = (
            *(FeatureInfo(f"conv4_{number}", 512, 8) for number in (1, 2, 3)),
            *(FeatureInfo(f"conv5_{number}", 512, 16) for number in (1, 2, 3)),
            FeatureInfo("pool5", 512, 32),
        )
        stops = (18, 20, 22, 25, 27, 29, 31)
        starts = (0, *stops[:-1])
        self._stages = {
            feature.name: tuple(f"body.{index}" for index in range(start, stop))
            for feature, start, stop in zip(self.features, starts, stops, strict=True)
        }
        for module in self.body:
            if isinstance(module, nn.ReLU):
                module.inplace = False  # the map before it is returned

    def pretrained(self) -> dict[str, Tensor]:
        """torchvision's ImageNet weights."""
        return download("vgg16")
