"""torchvision's DenseNet-121 up to its third dense block, at stride 8."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn

from fastfss.encoders.base import IMAGENET_NORMALIZATION, FeatureInfo, StagedEncoder
from fastfss.encoders.torchvision_encoders import download, materialise_, skeleton
from fastfss.errors import expected

# torchvision's files are older than its code: "denselayer1.norm.1.weight" is norm1's weight.
_OLD_LAYER = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")
_STAGES = {
    "layer1": ("conv0", "norm0", "relu0", "pool0", "denseblock1"),
    "layer2": ("transition1", "denseblock2"),
    "layer3": ("transition2", "denseblock3"),
}


class DilatedDenseNet(StagedEncoder):
    """DenseNet-121 without transition2's pooling: "layer1" to "layer3" at strides 4, 8 and 8.

    The maps are the outputs of the three dense blocks. transition1 pools without padding, so that
    an odd size is rounded down: 321 pixels give 81, 40 and 40 positions.

    Source: Huang et al., CVPR 2017, as lizhaoliu-Lec/DENet (ACM MM 2020) uses it.

    Args:
        name: "dilated_densenet121".

    Raises:
        ValueError: another name.
    """

    ignored_keys = ("classifier.*", "transition3.*", "denseblock4.*", "norm5.*")

    def __init__(self, name: str = "dilated_densenet121") -> None:
        if name != "dilated_densenet121":
            raise expected("name", "dilated_densenet121", repr(name))
        super().__init__(
            name,
            (
                FeatureInfo("layer1", 256, 4),
                FeatureInfo("layer2", 512, 8),
                FeatureInfo("layer3", 1024, 8),
            ),
            IMAGENET_NORMALIZATION,
            _STAGES,
        )
        network: nn.Module = skeleton("densenet121").features
        for paths in _STAGES.values():
            for path in paths:
                self.add_module(path, network.get_submodule(path))
        del self.get_submodule("transition2").pool
        materialise_(self)

    def own_keys(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of torchvision's file, or of the network that it loads it into."""
        return {
            _OLD_LAYER.sub(r"\1\2", key.removeprefix("features.")): tensor
            for key, tensor in tensors.items()
        }

    def pretrained(self) -> dict[str, Tensor]:
        """torchvision's ImageNet weights."""
        return download("densenet121")
