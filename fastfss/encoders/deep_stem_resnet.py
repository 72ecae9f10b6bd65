"""The deep-stem, dilated ResNet that SSP and MLC share, without its fourth stage."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from fastfss.encoders._bottleneck import residual_stage
from fastfss.encoders.base import (
    IMAGENET_NORMALIZATION,
    FeatureInfo,
    StagedEncoder,
    initialise_,
)
from fastfss.encoders.timm_encoder import pretrained_state_dict
from fastfss.errors import expected
from fastfss.weights import deep_stem_keys

# Bottlenecks of layer1, layer2, layer3.
_DEPTHS = {"deep_resnet50": (3, 4, 6), "deep_resnet101": (3, 4, 23)}
# GluonCV's ResNet-v1s has this layout and freely licensed weights (Apache-2.0). SSP and MLC start
# from another ImageNet training of the same shapes, for which there is no such download.
_PRETRAINED = {
    "deep_resnet50": "resnet50s.gluon_in1k",
    "deep_resnet101": "resnet101s.gluon_in1k",
}


class DeepStemResNet(StagedEncoder):
    """ResNet-50 or -101 with a stem of three 3x3 convolutions and a dilated third stage.

    The maps are signed at the end: the last block of layer3 has no ReLU. The names of parameters
    and buffers are those of the published encoder files. Batch-norm scales and shifts are frozen,
    as in the published training.

    Source: Yang et al., ICCV 2021 (MLC) and Fan et al., ECCV 2022 (SSP), the encoder of both.

    A file of weights may be an encoder file in either naming of its stem, or a checkpoint of SSP or
    of MLC.

    Args:
        name: "deep_resnet50" or "deep_resnet101".

    Raises:
        ValueError: another name.
    """

    ignored_keys = ("layer4.*", "fc.*")

    def __init__(self, name: str = "deep_resnet50") -> None:
        if name not in _DEPTHS:
            raise expected("name", f"one of {', '.join(_DEPTHS)}", repr(name))
        super().__init__(
            name,
            (
                FeatureInfo("stem", 128, 4),
                FeatureInfo("layer1", 256, 4),
                FeatureInfo("layer2", 512, 8),
                FeatureInfo("layer3", 1024, 8),
            ),
            IMAGENET_NORMALIZATION,
            {
                "stem": ("conv1", "bn1", "relu", "maxpool"),
                "layer1": ("layer1",),
                "layer2": ("layer2",),
                "layer3": ("layer3",),
            },
        )
        depths = _DEPTHS[name]
        self.conv1 = nn.Sequential(
            nn.Conv2d(3, 64, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(inplace=True),
            nn.Conv2d(64, 64, 3, padding=1, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(inplace=True),
            nn.Conv2d(64, 128, 3, padding=1, bias=False),
        )
        self.bn1 = nn.BatchNorm2d(128)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = residual_stage(128, 64, depths[0])
        self.layer2 = residual_stage(256, 128, depths[1], stride=2)
        self.layer3 = residual_stage(512, 256, depths[2], dilation=2, last_relu=False)
        initialise_(self)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.requires_grad_(False)
        self.train(self.training)  # puts the batch norms into evaluation mode

    def own_keys(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a published file under this encoder's names."""
        keys = deep_stem_keys(tensors)
        return {keys.to_ours(key).removeprefix("encoder."): t for key, t in tensors.items()}

    def pretrained(self) -> dict[str, Tensor]:
        """ImageNet weights of the same network, by timm's download."""
        return pretrained_state_dict(_PRETRAINED[self.name])
