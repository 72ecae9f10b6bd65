"""Swin-B at 384 pixels with the map of every block, the largest encoder of DCAMA.

Liu et al.: "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", ICCV 2021.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastfss.encoders.base import IMAGENET_NORMALIZATION, Encoder, FeatureInfo
from fastfss.encoders.timm_encoder import pretrained_state_dict
from fastfss.errors import expected

SIZE = 384
_PATCH = 4
_WINDOW = 12
_DEPTHS = (2, 2, 18, 2)
_HEADS = (4, 8, 16, 32)
_WIDTH = 128
_MASKED = -100.0  # logit between positions that a shifted window brings together


class EveryBlockSwin(Encoder):
    """Swin-B, window 12, maps "stage1.0" to "stage4.1": the output of every block.

    Names of parameters are those of the authors' files. It takes images of 384 x 384 alone.
    """

    ignored_keys = ("norm.*", "head.*", "*.relative_position_index", "*.attn_mask")
    _probe_size = (SIZE, SIZE)

    def __init__(self) -> None:
        features = [
            FeatureInfo(f"stage{stage}.{block}", _WIDTH << (stage - 1), _PATCH << (stage - 1))
            for stage, depth in enumerate(_DEPTHS, start=1)
            for block in range(depth)
        ]
        super().__init__("blocks_swin_b", features, IMAGENET_NORMALIZATION)
        self.patch_embed = _PatchEmbedding()
        grids = [SIZE // _PATCH >> stage for stage in range(len(_DEPTHS))]
        self.layers = nn.ModuleList(
            _Stage(_WIDTH << stage, depth, heads, grid, merge=stage < len(_DEPTHS) - 1)
            for stage, (depth, heads, grid) in enumerate(zip(_DEPTHS, _HEADS, grids, strict=True))
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def pretrained(self) -> dict[str, Tensor]:
        """ImageNet-22k weights fine-tuned on ImageNet-1k, by timm's download."""
        tensors = pretrained_state_dict("swin_base_patch4_window12_384.ms_in22k_ft_in1k")
        return {_authors_key(key): tensor for key, tensor in tensors.items()}

    def _compute(self, images: Tensor, wanted: frozenset[str]) -> dict[str, Tensor]:
        if images.shape[-2:] != (SIZE, SIZE):
            height, width = images.shape[-2:]
            raise expected("images", f"{SIZE} x {SIZE} for {self.name}", f"{height} x {width}")
        maps: dict[str, Tensor] = {}
        x = self.patch_embed(images)
        for number, stage in enumerate(self._own_stages(), start=1):
            for block, module in enumerate(stage.blocks):
                x = module(x)
                if (name := f"stage{number}.{block}") in wanted:
                    maps[name] = x.permute(0, 3, 1, 2)
                    if len(maps) == len(wanted):
                        return maps
            if stage.downsample is not None:
                x = stage.downsample(x)
        return maps

    def _own_stages(self) -> list[_Stage]:
        return [stage for stage in self.layers if isinstance(stage, _Stage)]

    def _drop(self, features: Sequence[FeatureInfo]) -> None:
        stages = self._own_stages()
        for _ in features:
            del stages[-1].blocks[len(stages[-1].blocks) - 1]
            if not stages[-1].blocks:
                stages.pop()
                stages[-1].downsample = None
        self.layers = nn.ModuleList(stages)


class _PatchEmbedding(nn.Module):
    """(B, 3, H, W) -> (B, H / 4, W / 4, 128)."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, _WIDTH, _PATCH, stride=_PATCH)
        self.norm = nn.LayerNorm(_WIDTH)

    def forward(self, images: Tensor) -> Tensor:
        x: Tensor = self.norm(self.proj(images).permute(0, 2, 3, 1))
        return x


class _Stage(nn.Module):
    """Blocks of one grid; the merging that leads to the next one."""

    def __init__(self, width: int, depth: int, heads: int, grid: int, *, merge: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            _Block(width, heads, grid, shifted=bool(block % 2)) for block in range(depth)
        )
        self.downsample = _Merging(width) if merge else None


class _Block(nn.Module):
    """Window attention and a perceptron, each behind a norm and around an identity."""

    def __init__(self, width: int, heads: int, grid: int, *, shifted: bool) -> None:
        super().__init__()
        # A grid of one window has nothing to shift.
        self.shift = _WINDOW // 2 if shifted and grid > _WINDOW else 0
        self.norm1 = nn.LayerNorm(width)
        self.attn = _WindowAttention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = _Perceptron(width)
        mask = _shift_mask(grid, self.shift) if self.shift else None
        self.register_buffer("mask", mask, persistent=False)

    def forward(
        self,
        x: Tensor,  # (B, h, w, C)
    ) -> Tensor:  # the same
        windows = self.norm1(x)
        if self.shift:
            windows = windows.roll((-self.shift, -self.shift), (1, 2))
        batch, height, width, channels = x.shape
        rows, columns = height // _WINDOW, width // _WINDOW
        windows = windows.view(batch, rows, _WINDOW, columns, _WINDOW, channels)
        windows = windows.transpose(2, 3).reshape(batch, rows * columns, _WINDOW**2, channels)
        windows = self.attn(windows, self.mask)
        windows = windows.view(batch, rows, columns, _WINDOW, _WINDOW, channels)
        attended = windows.transpose(2, 3).reshape(x.shape)
        if self.shift:
            attended = attended.roll((self.shift, self.shift), (1, 2))
        x = x + attended
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class _WindowAttention(nn.Module):
    """Attention inside each window, with a learned bias for every offset of two positions."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * _WINDOW - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.offsets: Tensor
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.register_buffer("offsets", _offsets(), persistent=False)

    def forward(
        self,
        windows: Tensor,  # (B, n, 144, C)
        mask: Tensor | None,  # (n, 144, 144)
    ) -> Tensor:  # (B, n, 144, C)
        batch, count, positions, _ = windows.shape
        qkv = self.qkv(windows).view(batch, count, positions, 3, self.heads, -1)
        q, k, v = qkv.permute(3, 0, 1, 4, 2, 5)  # each (B, n, heads, 144, C / heads)
        bias = self.relative_position_bias_table[self.offsets].permute(2, 0, 1)
        if mask is not None:
            bias = bias + mask.unsqueeze(1).to(bias.dtype)  # (n, heads, 144, 144)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        projected: Tensor = self.proj(out.transpose(2, 3).reshape(windows.shape))
        return projected


class _Perceptron(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class _Merging(nn.Module):
    """Four neighbours become one position of twice the channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(
        self,
        x: Tensor,  # (B, h, w, C)
    ) -> Tensor:  # (B, h / 2, w / 2, 2 C)
        corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        out: Tensor = self.reduction(self.norm(torch.cat(corners, dim=3)))
        return out


def _offsets() -> Tensor:
    """(144, 144): the table's row for each pair of positions in a window."""
    line = torch.arange(_WINDOW)
    y, x = (part.flatten() for part in torch.meshgrid(line, line, indexing="ij"))
    down, right = (part[:, None] - part[None] + _WINDOW - 1 for part in (y, x))
    return down * (2 * _WINDOW - 1) + right


def _shift_mask(grid: int, shift: int) -> Tensor:
    """(windows, 144, 144): 0 between positions that were neighbours before the shift, else -100."""
    line = torch.arange(grid)
    part = (line >= grid - _WINDOW).long() + (line >= grid - shift).long()
    region = 3 * part[:, None] + part[None]
    count = grid // _WINDOW
    windows = region.view(count, _WINDOW, count, _WINDOW).transpose(1, 2).reshape(count**2, -1)
    return (windows.unsqueeze(1) != windows.unsqueeze(2)) * _MASKED


def _authors_key(key: str) -> str:
    """timm (since 0.9) merges before a stage; the authors' files after the stage before."""
    stage, marker, rest = key.partition(".downsample.")
    if not marker:
        return key
    return f"layers.{int(stage.rpartition('.')[2]) - 1}.downsample.{rest}"
