"""1x1 convolutions at full speed on one CPU thread, and linear layers on any number.

PyTorch leaves float32 convolutions to oneDNN, but on one thread, with fewer than 16 images, not
those with a 1x1 kernel and stride 1: they become a matrix product of the BLAS that PyTorch was
built with, which reached half the speed (1024 to 256 channels on 41 x 41 positions, one core of an
AMD Zen 5: 8.0 ms, against 4.0 by oneDNN). Dilated ones do go to oneDNN, whatever the kernel, and a
1x1 kernel has nothing to dilate. Linear layers in float32 go to that product however many threads
there are: of 1025 rows, 768 to 3072 channels, 44 ms on the same core, and 21 as a convolution.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# oneDNN's order of the weights, made at every call, takes longer than fewer rows save.
_MANY_ROWS = 64


def _by_blas(x: Tensor) -> bool:
    """Whether PyTorch would leave a product to the BLAS, and has oneDNN too."""
    return x.is_cpu and x.dtype == torch.float32 and torch.backends.mkldnn.is_available()


def pointwise(
    x: Tensor,  # (B, C, h, w)
    weight: Tensor,  # (D, C, 1, 1)
    bias: Tensor | None = None,  # (D,)
) -> Tensor:  # (B, D, h, w)
    """A 1x1 convolution of stride 1."""
    # A compiled or exported graph chooses for itself, and may run elsewhere.
    if torch.compiler.is_compiling():
        return F.conv2d(x, weight, bias)
    slow = _by_blas(x) and torch.get_num_threads() == 1
    return F.conv2d(x, weight, bias, dilation=2 if slow else 1)


def linear(
    x: Tensor,  # (..., C)
    weight: Tensor,  # (D, C)
    bias: Tensor | None = None,  # (D,)
) -> Tensor:  # (..., D)
    """A linear layer; of many rows in float32 on the CPU, as a 1x1 convolution."""
    if torch.compiler.is_compiling() or not _by_blas(x) or x.shape[:-1].numel() < _MANY_ROWS:
        return F.linear(x, weight, bias)
    rows = x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)  # channels last, a column of pixels
    y = F.conv2d(rows, weight[:, :, None, None], bias, dilation=2)
    return y.permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)


class PointwiseLinear(nn.Linear):
    """An nn.Linear computed by `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply it to (..., C)."""
        return linear(input, self.weight, self.bias)


class PointwiseConv2d(nn.Conv2d):
    """An nn.Conv2d of 1x1 kernel, stride 1, without padding or groups, computed by `pointwise`."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return pointwise(input, weight, bias)


def use_pointwise_(module: nn.Module) -> None:
    """Make what can be one a PointwiseConv2d or a PointwiseLinear, in place."""
    for part in module.modules():
        if type(part) is nn.Linear:
            part.__class__ = PointwiseLinear
        elif (
            type(part) is nn.Conv2d
            and part.kernel_size == part.stride == (1, 1)
            and part.padding == (0, 0)
            and part.groups == 1
        ):
            # Parameters, hooks and names stay; the class says how it is computed, and no more.
            part.__class__ = PointwiseConv2d
