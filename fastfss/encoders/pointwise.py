"""1x1 convolutions at full speed on one CPU thread.

PyTorch leaves float32 convolutions to oneDNN, but on one thread, with fewer than 16 images, not
those with a 1x1 kernel and stride 1: they become a matrix product of the BLAS that PyTorch was
built with, which reached half the speed (1024 to 256 channels on 41 x 41 positions, one core of an
AMD Zen 5: 8.0 ms, against 4.0 by oneDNN). Dilated ones do go to oneDNN, whatever the kernel, and a
1x1 kernel has nothing to dilate.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def pointwise(
    x: Tensor,  # (B, C, h, w)
    weight: Tensor,  # (D, C, 1, 1)
    bias: Tensor | None = None,  # (D,)
) -> Tensor:  # (B, D, h, w)
    """A 1x1 convolution of stride 1."""
    # A compiled or exported graph chooses for itself, and may run elsewhere.
    if torch.compiler.is_compiling():
        return F.conv2d(x, weight, bias)
    slow = x.is_cpu and x.dtype == torch.float32 and torch.get_num_threads() == 1
    return F.conv2d(x, weight, bias, dilation=2 if slow else 1)


class PointwiseConv2d(nn.Conv2d):
    """An nn.Conv2d of 1x1 kernel, stride 1, without padding or groups, computed by `pointwise`."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return pointwise(input, weight, bias)


def use_pointwise_(module: nn.Module) -> None:
    """Make every convolution of a module that can be one a PointwiseConv2d, in place."""
    for part in module.modules():
        if (
            type(part) is nn.Conv2d
            and part.kernel_size == part.stride == (1, 1)
            and part.padding == (0, 0)
            and part.groups == 1
        ):
            # Parameters, hooks and names stay; the class says how it is computed, and no more.
            part.__class__ = PointwiseConv2d
