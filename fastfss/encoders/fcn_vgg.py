"""VGG-16 as a fully convolutional network, as the guided networks use it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fastfss.encoders._blank_border import with_blank_border
from fastfss.encoders.base import (
    IMAGENET_NORMALIZATION,
    FeatureInfo,
    Normalization,
    StagedEncoder,
    initialise_,
)
from fastfss.encoders.torchvision_encoders import download
from fastfss.errors import expected
from fastfss.ops._gpu_inference import run

# Convolutions and channels of each block.
_BLOCKS = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))
_WIDTHS = {"fcn_vgg16": 4096, "fcn_vgg16_lite": 256}
_PADDING = 81  # of conv1_1: the 7x7 fc6, without padding, then covers the image's border too
_SMALLEST = 33  # pixels; one less gives no position
# Of Caffe's VGG-16.
NORMALIZATION = Normalization(
    mean=(0.48109378 * 255, 0.45752457 * 255, 0.40787054 * 255),
    std=(1.0, 1.0, 1.0),
    scale=255.0,
    bgr=True,
)
_LAST_CHEAP = "relu4_2"  # up to here the padding need not be computed
# The layers of torchvision's VGG-16 that hold weights.
_OF_TORCHVISION = {
    **dict(
        zip(
            (f"features.{index}" for index in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)),
            (f"conv{b}_{c}" for b, (n, _) in enumerate(_BLOCKS, 1) for c in range(1, n + 1)),
            strict=True,
        )
    ),
    "classifier.0": "fc6",
    "classifier.3": "fc7",
}


class FCNVGG(StagedEncoder):
    """VGG-16 whose two hidden linear layers are convolutions, maps "fc6" and "fc7" at stride 32.

    The image is padded by 81 pixels and the poolings round up, so that n pixels give
    ceil(n / 32) - 1 positions; position i has its centre at pixel 32 i + 31.5. Input is BGR in
    0..255 minus the mean. Dropout follows fc6 and fc7 in training: of single values as in VGG-16,
    of channels in the lite network.

    A file of weights may be a published one of the guided networks, or torchvision's vgg16, whose
    RGB input with a deviation goes into conv1_1. Its classifier fills fc6 and fc7 of "fcn_vgg16";
    those of "fcn_vgg16_lite" stay as they were drawn, normal(0, 0.001).

    Source: Shelhamer et al., PAMI 2016; Rakelly et al., arXiv 1806.07373.

    Args:
        name: "fcn_vgg16" (fc6 and fc7 of 4096 channels) or "fcn_vgg16_lite" (256).
        annotations: channels of conv1_1 beside the image's three; see `annotate_`.

    Attributes:
        blank_border: whether what the padding gives is taken from a small blank image. False
            computes it all, as published: the same to rounding, and slower.

    Raises:
        ValueError: another name.
    """

    ignored_keys = ("classifier.*", "decoder.weight")
    blank_border: bool = True

    def __init__(self, name: str = "fcn_vgg16", *, annotations: int = 0) -> None:
        if name not in _WIDTHS:
            raise expected("name", f"one of {', '.join(_WIDTHS)}", repr(name))
        lite, width = name == "fcn_vgg16_lite", _WIDTHS[name]
        parts: dict[str, nn.Module] = {}
        inputs = 3
        for block, (convolutions, channels) in enumerate(_BLOCKS, start=1):
            for place in range(1, convolutions + 1):
                padding = _PADDING if not parts else 1
                parts[f"conv{block}_{place}"] = nn.Conv2d(inputs, channels, 3, padding=padding)
                parts[f"relu{block}_{place}"] = nn.ReLU(inplace=True)
                inputs = channels
            parts[f"pool{block}"] = nn.MaxPool2d(2, ceil_mode=True)
        body = tuple(parts)
        for number, kernel in ((6, 7), (7, 1)):
            parts[f"fc{number}"] = nn.Conv2d(inputs, width, kernel)
            parts[f"relu{number}"] = nn.ReLU(inplace=True)
            parts[f"drop{number}"] = nn.Dropout2d() if lite else nn.Dropout()
            inputs = width
        super().__init__(
            name,
            [FeatureInfo("fc6", width, 32), FeatureInfo("fc7", width, 32)],
            NORMALIZATION,
            {"fc6": (*body, "fc6", "relu6", "drop6"), "fc7": ("fc7", "relu7", "drop7")},
        )
        for path, part in parts.items():
            self.add_module(path, part)
        initialise_(self)
        if lite:
            for path in ("fc6", "fc7"):
                nn.init.normal_(self.get_parameter(f"{path}.weight"), std=0.001)
        if annotations:
            self.annotate_(annotations)

    def annotate_(self, channels: int) -> FCNVGG:
        """Let conv1_1 take further channels; their weights are the mean over the image's colours.

        Args:
            channels: how many, behind the image's.

        Returns:
            This encoder.

        Raises:
            ValueError: a number below 1, or an encoder that has been annotated before.
        """
        if channels < 1 or self.inputs != 3:
            wanted = "a positive number, for an encoder without any"
            raise expected("channels", wanted, f"{channels} beside {self.inputs - 3}")
        before = self.get_submodule("conv1_1")
        assert isinstance(before, nn.Conv2d)
        mean = before.weight.detach().mean(dim=1, keepdim=True)
        weight = torch.cat([before.weight.detach(), mean.expand(-1, channels, -1, -1)], dim=1)
        self.inputs = before.in_channels = 3 + channels
        before.weight = nn.Parameter(weight, requires_grad=before.weight.requires_grad)
        self.options = {**self.options, "annotations": channels}
        return self

    def own_keys(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of torchvision's vgg16, or of a published file, under our names."""
        if "features.0.weight" not in tensors:
            return dict(tensors)
        found = {}
        for key, tensor in tensors.items():
            module, _, leaf = key.rpartition(".")
            found[f"{_OF_TORCHVISION.get(module, module)}.{leaf}"] = tensor
        _take_colours(found, self.normalization)
        own = self.state_dict()
        for name, reach in (("fc6", 7), ("fc7", 1)):
            key = f"{name}.weight"
            if key not in own:  # truncated
                continue
            if self.name == "fcn_vgg16" and key in found:
                found[key] = found[key].reshape(own[key].shape[0], -1, reach, reach)
            else:
                found |= {one: own[one] for one in (key, f"{name}.bias")}
        kept = own.keys() | {key for key in found if key.startswith("classifier.")}
        return {key: tensor for key, tensor in found.items() if key in kept}

    def pretrained(self) -> dict[str, Tensor]:
        """torchvision's ImageNet weights of vgg16."""
        return download("vgg16")

    def _compute(self, images: Tensor, wanted: frozenset[str]) -> dict[str, Tensor]:
        if min(images.shape[-2:]) < _SMALLEST:
            came = f"{images.shape[-2]} x {images.shape[-1]}"
            raise expected("images", f"at least {_SMALLEST} pixels a side", came)
        return super()._compute(images, wanted)

    def _run(self, stage: str, x: Tensor) -> Tensor:
        paths = self._stages[stage]
        if stage == "fc6" and self.blank_border:
            count = paths.index(_LAST_CHEAP) + 1
            layers, paths = [self.get_submodule(path) for path in paths[:count]], paths[count:]
            convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
            x = with_blank_border(x, convolutions, layers[1:])
        return run([self.get_submodule(path) for path in paths], x)

    def _fold_(self) -> bool:
        return False


def _take_colours(tensors: dict[str, Tensor], own: Normalization) -> None:
    """Change conv1_1 from torchvision's input to ours, in place.

    With x ours, BGR, torchvision takes ((x + c) / 255 - m) / s, c our mean, m and s its mean and
    deviation. Exact but where the kernel meets the padding, 80 pixels from the image.
    """
    weight, bias = tensors.get("conv1_1.weight"), tensors.get("conv1_1.bias")
    if weight is None or bias is None or weight.ndim != 4 or weight.shape[1] != 3:
        return
    theirs = IMAGENET_NORMALIZATION
    mean, std, shift = (
        torch.tensor(values, dtype=torch.float64)[:, None, None]
        for values in (theirs.mean, theirs.std, own.mean)
    )
    scaled = weight.double() / std
    tensors["conv1_1.weight"] = (scaled / 255).flip(1).float()
    tensors["conv1_1.bias"] = (
        bias.double() + (scaled * (shift / 255 - mean)).sum((1, 2, 3))
    ).float()
