"""The bottleneck block of ResNets, and a stage of them."""

from __future__ import annotations

from torch import Tensor, nn

from fastfss.ops._gpu_inference import convolution, run

_EXPANSION = 4


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions around an identity (He et al., CVPR 2016).

    Args:
        inputs: input channels.
        width: channels of the 3x3 convolution; the output has four times as many.
        stride: of the 3x3 convolution and of the projection.
        dilation: of the 3x3 convolution.
        project: whether the identity goes through a 1x1 convolution.
        activate: whether a ReLU follows the addition.
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        project: bool = False,
        activate: bool = True,
    ) -> None:
        super().__init__()
        outputs = _EXPANSION * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(
            width, width, 3, stride=stride, padding=dilation, dilation=dilation, bias=False
        )
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if project:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )
        self.activate = activate

    def forward(
        self,
        x: Tensor,  # (B, inputs, H, W)
    ) -> Tensor:  # (B, 4 * width, H / stride, W / stride)
        """Apply the block."""
        identity = x if self.downsample is None else run([self.downsample], x)
        x = run([self.conv1, self.bn1, self.relu], x)
        x = run([self.conv2, self.bn2, self.relu], x)
        if isinstance(self.bn3, nn.Identity):
            return convolution(x, self.conv3, add=identity, relu=self.activate)
        x = self.bn3(self.conv3(x))
        x += identity
        return self.relu(x) if self.activate else x


def residual_stage(
    inputs: int,
    width: int,
    blocks: int,
    *,
    stride: int = 1,
    dilation: int = 1,
    first_dilation: int = 1,
    last_relu: bool = True,
) -> nn.Sequential:
    """A residual stage; its first block strides and projects.

    Args:
        inputs, width: of the first block, see Bottleneck.
        blocks: how many.
        stride: of the first block.
        dilation: of the later blocks.
        first_dilation: of the first block.
        last_relu: whether the last block ends in a ReLU.
    """
    first = Bottleneck(inputs, width, stride=stride, dilation=first_dilation, project=True)
    later = [
        Bottleneck(
            _EXPANSION * width, width, dilation=dilation, activate=last_relu or block < blocks - 1
        )
        for block in range(1, blocks)
    ]
    return nn.Sequential(first, *later)
