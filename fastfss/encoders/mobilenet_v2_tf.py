"""MobileNetV2 as TensorFlow computes it, batch norm already folded into the convolutions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastfss.encoders._to_onnx import is_to_onnx
from fastfss.encoders.base import FeatureInfo, Normalization, StagedEncoder, initialise_

# Expansion, channels, blocks and stride of each group (Sandler et al., CVPR 2018, table 2).
_GROUPS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class SameConv2d(nn.Conv2d):
    """A 3x3 convolution of stride 1 or 2 with TensorFlow's SAME padding.

    SAME pads just enough for ceil(size / stride) outputs, the odd pixel at the bottom or right. At
    stride 2 an even size is therefore padded on one side only, unlike `padding=1`.
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, 3, stride=stride, groups=groups)

    def forward(
        self,
        input: Tensor,  # (B, inputs, H, W)
    ) -> Tensor:  # (B, outputs, ceil(H / stride), ceil(W / stride))
        """Pad and convolve."""
        height, width = input.shape[2:]
        halves = self.stride != (1, 1)
        if halves and is_to_onnx():
            return self._named_same(input)
        if not halves or (height % 2 and width % 2):
            # The convolution pads alike on all sides itself, without a copy of the map.
            return F.conv2d(input, self.weight, self.bias, self.stride, 1, groups=self.groups)
        return super().forward(F.pad(input, (width % 2, 1, height % 2, 1)))

    def _named_same(self, input: Tensor) -> Tensor:
        """ONNX has SAME by name, without a copy of the map and for images of any size."""
        batch, _, height, width = input.shape
        return torch.onnx.ops.symbolic(
            "Conv",
            (input, self.weight, self.bias),
            {
                "auto_pad": "SAME_UPPER",
                "group": self.groups,
                "kernel_shape": list(self.kernel_size),
                "strides": list(self.stride),
            },
            dtype=input.dtype,
            shape=(batch, self.out_channels, -(-height // 2), -(-width // 2)),
        )


class InvertedResidual(nn.Module):
    """Expand, filter depthwise, project linearly; add the input where the shapes agree."""

    def __init__(self, inputs: int, outputs: int, *, expansion: int, stride: int) -> None:
        super().__init__()
        width = expansion * inputs
        self.expand = nn.Conv2d(inputs, width, 1) if expansion > 1 else None
        self.depthwise = SameConv2d(width, width, stride=stride, groups=width)
        self.project = nn.Conv2d(width, outputs, 1)
        self.residual = stride == 1 and inputs == outputs

    def forward(
        self,
        x: Tensor,  # (B, inputs, H, W)
    ) -> Tensor:  # (B, outputs, ceil(H / stride), ceil(W / stride))
        """Apply the block."""
        wide = x if self.expand is None else F.relu6(self.expand(x), inplace=True)
        y: Tensor = self.project(F.relu6(self.depthwise(wide), inplace=True))
        return x + y if self.residual else y


class MobileNetV2TF(StagedEncoder):
    """MobileNetV2 1.0 with TensorFlow's padding and input range, without batch norms.

    For weights that come from TensorFlow or TensorFlow Lite; "mobilenet_v2" is torchvision's. The
    maps are "stem" and "layer1" to "layer4", the linear bottlenecks at strides 2, 4, 8, 16 and 32.
    Keys: `stem`, `blocks.N.expand`, `blocks.N.depthwise`, `blocks.N.project`, each with weight and
    bias; `head` and `classifier` of a file are left out.

    Source: Sandler et al., CVPR 2018.
    """

    ignored_keys = ("head.*", "classifier.*")

    def __init__(self) -> None:
        super().__init__(
            "mobilenet_v2_tf",
            (
                FeatureInfo("stem", 16, 2),
                FeatureInfo("layer1", 24, 4),
                FeatureInfo("layer2", 32, 8),
                FeatureInfo("layer3", 96, 16),
                FeatureInfo("layer4", 320, 32),
            ),
            Normalization(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
            {
                "stem": ("stem", "relu6", "blocks.0"),
                "layer1": _blocks(1, 3),
                "layer2": _blocks(3, 6),
                "layer3": _blocks(6, 13),
                "layer4": _blocks(13, 17),
            },
        )
        self.stem = SameConv2d(3, 32, stride=2)
        self.relu6 = nn.ReLU6()
        self.blocks = nn.Sequential()
        inputs = 32
        for expansion, outputs, count, stride in _GROUPS:
            for block in range(count):
                self.blocks.append(
                    InvertedResidual(
                        inputs, outputs, expansion=expansion, stride=stride if block == 0 else 1
                    )
                )
                inputs = outputs
        initialise_(self)


def _blocks(start: int, stop: int) -> tuple[str, ...]:
    return tuple(f"blocks.{index}" for index in range(start, stop))
