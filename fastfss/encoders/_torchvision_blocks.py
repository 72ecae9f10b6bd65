"""torchvision's residual blocks with folded norms, their ReLUs and sums inside the convolutions."""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from fastfss.ops._gpu_inference import convolution, run


class FoldedBasicBlock(BasicBlock):  # type: ignore[misc]
    """A BasicBlock without norms."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block to (B, C, H, W)."""
        identity = x if self.downsample is None else run([self.downsample], x)
        x = run([self.conv1, self.relu], x)
        return convolution(x, self.conv2, add=identity, relu=True)


class FoldedBottleneck(Bottleneck):  # type: ignore[misc]
    """A Bottleneck without norms."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block to (B, C, H, W)."""
        identity = x if self.downsample is None else run([self.downsample], x)
        x = run([self.conv1, self.relu, self.conv2, self.relu], x)
        return convolution(x, self.conv3, add=identity, relu=True)


def use_folded_blocks_(module: nn.Module) -> None:
    """Make every residual block whose norms are folded one of the above, in place."""
    for part in module.modules():
        # Parameters and names stay; the class says how the block is computed, and no more.
        if type(part) is BasicBlock and isinstance(part.bn2, nn.Identity):
            part.__class__ = FoldedBasicBlock
        elif type(part) is Bottleneck and isinstance(part.bn3, nn.Identity):
            part.__class__ = FoldedBottleneck
