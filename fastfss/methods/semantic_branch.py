"""PPNet's semantic branch: the classes of training, learnt beside the prototypes."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SemanticBranch(nn.Module):
    """Four dilated convolutions, added up (Liu et al., ECCV 2020).

    Args:
        channels: of the features.
        outputs: classes, the background among them.
    """

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        for number, rate in enumerate((6, 12, 18, 24)):
            convolution = nn.Conv2d(channels, outputs, 3, padding=rate, dilation=rate)
            nn.init.normal_(convolution.weight, std=0.01)
            self.add_module(f"c{number}", convolution)

    def forward(
        self,
        features: Tensor,  # (B, C, h, w)
    ) -> Tensor:  # (B, outputs, h, w)
        """Logits of every position."""
        return torch.stack([part(features) for part in self.children()]).sum(dim=0)
