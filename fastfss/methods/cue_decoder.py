"""The network of cue fusion: what it makes of cues, maps and hints."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HINTS = 3  # prior, positive marks, negative marks


class CueDecoder(nn.Module):
    """Reads cues and the query's maps; see CueFusion.

    Args:
        widths: channels of the query's maps, fine to coarse.
        width: of the decoder.
    """

    centre: Tensor
    spread: Tensor

    def __init__(self, widths: Sequence[int], width: int) -> None:
        super().__init__()
        cues = len(widths) * 7
        # Fixed before training: statistics of a batch would differ between few shots and clicks.
        self.register_buffer("centre", torch.zeros(cues, 1, 1))
        self.register_buffer("spread", torch.ones(cues, 1, 1))
        self.linear = nn.Conv2d(cues, 1, 1)
        self.context = nn.ModuleList(nn.Conv2d(inputs, 24, 1) for inputs in widths[1:])
        self.drop = nn.Dropout2d(0.2)
        self.enter = nn.Conv2d(cues + 3 * 24 + HINTS, width, 1)
        self.blocks = nn.ModuleList(Block(width, dilation) for dilation in (1, 2, 4, 8, 1))
        self.pooled = nn.Linear(width, width)
        self.skip = nn.Conv2d(widths[0], 24, 1)
        self.fine = nn.Sequential(
            nn.Conv2d(width + 24 + HINTS, 32, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(32, 1, 1),
        )
        self.presence = nn.Sequential(
            nn.Linear(2 * width + 2, 32), nn.ReLU(inplace=True), nn.Linear(32, 1)
        )

    def forward(
        self,
        cues: Sequence[Tensor],  # (B, 7, h, w) each
        maps: Sequence[Tensor],  # (B, C, h, w), strides 4, 8, 16, 32
        hints: Tensor | None,  # (B, 3, H, W)
    ) -> tuple[Tensor, Tensor]:  # (B, 1, h, w) at stride 4, (B,)
        """Logits of the object, and of its presence."""
        size, fine_size = maps[1].shape[-2:], maps[0].shape[-2:]

        def grown(x: Tensor, size: torch.Size = size) -> Tensor:
            return x if x.shape[-2:] == size else F.interpolate(x, size, mode="bilinear")

        def hinted(size: torch.Size) -> Tensor:
            if hints is None:
                return maps[0].new_zeros(maps[0].shape[0], HINTS, *size)
            return F.adaptive_avg_pool2d(hints.to(maps[0].dtype), (size[0], size[1]))

        read = (torch.cat([grown(one) for one in cues], dim=1) - self.centre) / self.spread
        seen = [
            grown(project(F.normalize(one, dim=1)))
            for project, one in zip(self.context, maps[1:], strict=True)
        ]
        x = self.enter(torch.cat([read, self.drop(torch.cat(seen, dim=1)), hinted(size)], dim=1))
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number == 3:
                x = x + self.pooled(x.mean(dim=(2, 3)))[:, :, None, None]
        skip = self.skip(F.normalize(maps[0], dim=1))
        last = torch.cat([grown(x, fine_size), skip, hinted(fine_size)], dim=1)
        logits: Tensor = self.fine(last) + grown(self.linear(read), fine_size)
        return logits, self._presence(x, logits)

    @torch.no_grad()
    def calibrate(self, batches: Sequence[Sequence[Tensor]]) -> None:
        """Fix what a usual cue is.

        Args:
            batches: cues as `forward` takes them.
        """
        rows = [[one.transpose(0, 1).flatten(1) for one in cues] for cues in batches]
        levels = [torch.cat(level, dim=1) for level in zip(*rows, strict=True)]
        self.centre.copy_(torch.cat([one.mean(dim=1) for one in levels])[:, None, None])
        spread = torch.cat([one.std(dim=1) for one in levels])
        self.spread.copy_(spread.clamp_min(1e-3)[:, None, None])

    def _presence(self, x: Tensor, logits: Tensor) -> Tensor:
        small = F.interpolate(logits, x.shape[-2:], mode="bilinear").flatten(2)
        where = small.softmax(dim=2)
        inside = (x.flatten(2) * where).sum(dim=2)
        strongest = small.amax(dim=2)
        about = [x.mean(dim=(2, 3)), inside, strongest, small.sigmoid().mean(dim=2)]
        logit: Tensor = self.presence(torch.cat(about, dim=1)).squeeze(1)
        return logit


class Block(nn.Module):
    """A residual dilated convolution."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation)
        self.norm = nn.GroupNorm(8, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to the same shape."""
        found: Tensor = x + self.norm(self.conv(F.relu(x)))
        return found
