"""torchvision's classification networks as encoders: ResNet, VGG-16, MobileNetV2, SqueezeNet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastfss.encoders.base import (
    IMAGENET_NORMALIZATION,
    FeatureInfo,
    StagedEncoder,
    initialise_,
)
from fastfss.errors import expected

_RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101")
# Channels of layer1; each later layer has twice as many.
_RESNET_WIDTHS = {"resnet18": 64, "resnet34": 64, "resnet50": 256, "resnet101": 256}


class TorchvisionResNet(StagedEncoder):
    """A ResNet of torchvision, maps "layer1" to "layer4" at strides 4, 8, 16 and 32.

    Source: He et al., CVPR 2016, with the stride in the 3x3 convolution.

    Args:
        name: "resnet18", "resnet34", "resnet50" or "resnet101".

    Raises:
        ValueError: another name.
    """

    ignored_keys = ("fc.*",)

    def __init__(self, name: str) -> None:
        _check(name, _RESNETS)
        width = _RESNET_WIDTHS[name]
        super().__init__(
            name,
            [FeatureInfo(f"layer{n}", width * 2 ** (n - 1), 2 ** (n + 1)) for n in (1, 2, 3, 4)],
            IMAGENET_NORMALIZATION,
            {
                "layer1": ("conv1", "bn1", "relu", "maxpool", "layer1"),
                "layer2": ("layer2",),
                "layer3": ("layer3",),
                "layer4": ("layer4",),
            },
        )
        network = skeleton(name)
        for paths in self._stages.values():
            for path in paths:
                self.add_module(path, network.get_submodule(path))
        materialise_(self)

    def pretrained(self) -> dict[str, Tensor]:
        """torchvision's ImageNet weights."""
        return download(self.name)

    def _fold_(self) -> bool:
        # Its classes are torchvision's, which importing fastfss does not load.
        from fastfss.encoders._torchvision_blocks import use_folded_blocks_

        folded = super()._fold_()
        use_folded_blocks_(self)
        return folded


class TorchvisionSequential(StagedEncoder):
    """A network of torchvision that is one sequence of layers.

    - "vgg16", "vgg16_bn" (Simonyan and Zisserman, ICLR 2015): "conv1_2" to "conv5_3", after the
      last ReLU of each block and before its pooling, at strides 1, 2, 4, 8 and 16.
    - "mobilenet_v2" (Sandler et al., CVPR 2018): "stem" and "layer1" to "layer4", the linear
      bottlenecks at strides 2, 4, 8, 16 and 32.
    - "squeezenet1_1" (Iandola et al., 2016): "conv1", "fire3", "fire5", "fire9" at strides 2, 4, 8
      and 16. Its first convolution is not padded, so that sizes are rounded down.

    Args:
        name: one of these.

    Raises:
        ValueError: another name.
    """

    ignored_keys: tuple[str, ...] = ("classifier.*",)

    def __init__(self, name: str) -> None:
        _check(name, tuple(_SEQUENTIAL))
        features, stops = [], []
        for feature, stop in _SEQUENTIAL[name]:
            features.append(feature)
            stops.append(stop)
        starts = [0, *stops[:-1]]
        super().__init__(
            name,
            features,
            IMAGENET_NORMALIZATION,
            {
                feature.name: tuple(f"body.{index}" for index in range(start, stop))
                for feature, start, stop in zip(features, starts, stops, strict=True)
            },
        )
        # Not called "features" as in torchvision, because that is the list of maps here.
        self.body: nn.Sequential = skeleton(name).features[: stops[-1]]
        materialise_(self)
        if name == "mobilenet_v2":
            # Its last convolution belongs to the classifier.
            self.ignored_keys = ("classifier.*", "body.18.*")

    def own_keys(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of torchvision's file, or of Caffe's SqueezeNet, under our names."""
        if "fire2.squeeze1x1.weight" in tensors:
            return squeezenet_from_caffe(tensors)
        return {
            f"body.{key.removeprefix('features.')}" if key.startswith("features.") else key: tensor
            for key, tensor in tensors.items()
        }

    def pretrained(self) -> dict[str, Tensor]:
        """torchvision's ImageNet weights."""
        return download(self.name)


# Each map with the number of torchvision's layers that lead to it.
_SEQUENTIAL = {
    "vgg16": (
        (FeatureInfo("conv1_2", 64, 1), 4),
        (FeatureInfo("conv2_2", 128, 2), 9),
        (FeatureInfo("conv3_3", 256, 4), 16),
        (FeatureInfo("conv4_3", 512, 8), 23),
        (FeatureInfo("conv5_3", 512, 16), 30),
    ),
    "vgg16_bn": (
        (FeatureInfo("conv1_2", 64, 1), 6),
        (FeatureInfo("conv2_2", 128, 2), 13),
        (FeatureInfo("conv3_3", 256, 4), 23),
        (FeatureInfo("conv4_3", 512, 8), 33),
        (FeatureInfo("conv5_3", 512, 16), 43),
    ),
    "mobilenet_v2": (
        (FeatureInfo("stem", 16, 2), 2),
        (FeatureInfo("layer1", 24, 4), 4),
        (FeatureInfo("layer2", 32, 8), 7),
        (FeatureInfo("layer3", 96, 16), 14),
        (FeatureInfo("layer4", 320, 32), 18),
    ),
    "squeezenet1_1": (
        (FeatureInfo("conv1", 64, 2), 2),
        (FeatureInfo("fire3", 128, 4), 5),
        (FeatureInfo("fire5", 256, 8), 8),
        (FeatureInfo("fire9", 512, 16), 13),
    ),
}


def download(name: str) -> dict[str, Tensor]:
    """torchvision's ImageNet weights, from its own server or its cache.

    The first version of the weights, not the newest: it is what the published few-shot methods
    start from.

    Args:
        name: a model of torchvision.

    Returns:
        The state dict with torchvision's key names.

    Raises:
        OSError: the download failed.
    """
    weights = _models().get_model_weights(name)["IMAGENET1K_V1"]
    tensors: Mapping[str, Tensor] = weights.get_state_dict(progress=True, check_hash=True)
    return dict(tensors)


# Caffe's channel means, red to blue.
_CAFFE_MEAN = (123.0, 117.0, 104.0)
_FIRE_LAYERS = {2: 3, 3: 4, 4: 6, 5: 7, 6: 9, 7: 10, 8: 11, 9: 12}  # Fire module to body index
_FIRE_PARTS = {"squeeze1x1": "squeeze", "expand1x1": "expand1x1", "expand3x3": "expand3x3"}


def squeezenet_from_caffe(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn Caffe's SqueezeNet 1.1 into ours, its input convention included.

    Caffe's takes BGR in 0..255 minus the channel means. Its first convolution has no padding, so
    the change to normalised RGB goes into that convolution exactly:
    255 (s z + m) - c = (255 s) z + (255 m - c), with z our input, m and s our mean and standard
    deviation, c Caffe's mean.

    Args:
        tensors: keys "conv1", "fire2.squeeze1x1" to "fire9.expand3x3", "conv10", each with weight
            and bias; floating point.

    Returns:
        float32 tensors with our key names, without the classifier.
    """
    names = {"conv1": "body.0"} | {
        f"fire{fire}.{theirs}": f"body.{index}.{ours}"
        for fire, index in _FIRE_LAYERS.items()
        for theirs, ours in _FIRE_PARTS.items()
    }
    found: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        module, _, leaf = key.rpartition(".")
        if module != "conv10":
            found[f"{names.get(module, module)}.{leaf}"] = tensor.float()
    weight, bias = found.get("body.0.weight"), found.get("body.0.bias")
    if weight is not None and bias is not None and weight.ndim == 4 and weight.shape[1] == 3:
        mean, std = (
            255 * torch.tensor(values, dtype=torch.float64)[:, None, None]
            for values in (IMAGENET_NORMALIZATION.mean, IMAGENET_NORMALIZATION.std)
        )
        rgb = weight.double().flip(1)
        shift = mean - torch.tensor(_CAFFE_MEAN, dtype=torch.float64)[:, None, None]
        found["body.0.weight"] = (rgb * std).float()
        found["body.0.bias"] = (bias.double() + (rgb * shift).sum((1, 2, 3))).float()
    return found


def skeleton(name: str) -> Any:
    """torchvision's network without memory: VGG's classifier alone would take 2 s to draw."""
    with torch.device("meta"):
        return _models().get_model(name, weights=None)


def materialise_(encoder: StagedEncoder) -> None:
    """Give an encoder of `skeleton`'s modules memory and random weights."""
    encoder.to_empty(device=torch.get_default_device())
    initialise_(encoder)
    encoder.train(encoder.training)  # puts the batch norms into evaluation mode


def _models() -> Any:
    """torchvision.models, imported when it is needed: it doubles the time of importing torch."""
    import torchvision

    return torchvision.models


def _check(name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise expected("name", f"one of {', '.join(known)}", repr(name))
