"""HSNet's learner: 4D correlations of three levels squeezed into one map, and its decoder.

Min, Kang, Cho: "Hypercorrelation Squeeze for Few-Shot Segmentation", ICCV 2021, sections 4.2, 4.3.
Correlations are (B, C, ha, wa, hb, wb): query grid, support grid; channels last in memory.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastfss.ops import center_pivot_conv4d, dense_correlation
from fastfss.ops.center_pivot_conv4d import over_query, over_support

Grid = Literal["square", "query"]
GROUPS = 4

# Fresh memory costs more than the arithmetic on it (page faults: 45 ms for 100 MB of correlations
# whose convolution takes 17 ms), so that big maps are made and used up in parts: of this size where
# a part is only looked at, and of the larger one where it is the input of a convolution.
_CACHED_BYTES = 1 << 20
_PART_BYTES = 16 << 20


class Hypercorrelation(ABC):
    """The correlations of one level: whole, or some rows of the query at a time."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int, int, int, int]:
        """(B, L, ha, wa, hb, wb)."""

    @abstractmethod
    def correlations(self) -> Tensor:
        """(B, L, ha, wa, hb, wb)."""

    @abstractmethod
    def fill(
        self,
        out: Tensor,  # (B, rows, wa, hb, wb, L): zeros, or what an earlier call left
        start: int,
    ) -> None:
        """Write the correlations of the query's rows from `start` on."""


@dataclass(frozen=True, eq=False)
class Level(Hypercorrelation):
    """The feature maps of one grid, of which the correlations are made.

    Attributes:
        queries: L maps (B, C_l, ha, wa).
        supports: L maps (B, C_l, hb, wb), masked.
        mask: (B, hb, wb), 0 where the supports are; None where that is not known.
    """

    queries: Sequence[Tensor]
    supports: Sequence[Tensor]
    mask: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int, int, int, int, int]:
        """(B, L, ha, wa, hb, wb)."""
        (batch, _, ha, wa), (hb, wb) = self.queries[0].shape, self.supports[0].shape[2:]
        return batch, len(self.queries), ha, wa, hb, wb

    def correlations(self) -> Tensor:
        """(B, L, ha, wa, hb, wb)."""
        return dense_correlation(self.queries, self.supports)

    def fill(self, out: Tensor, start: int) -> None:
        """Write rows of the query; what is outside of the object's box stays as it is: 0."""
        queries = [q[:, :, start : start + out.shape[1]] for q in self.queries]
        supports = [s[:, :, self._box[0], self._box[1]] for s in self.supports]
        found = dense_correlation(queries, supports)
        out[:, :, :, self._box[0], self._box[1]] = found.permute(0, 2, 3, 4, 5, 1)

    @cached_property
    def _box(self) -> tuple[slice, slice]:
        """Rows and columns of the support outside of which everything is 0.

        The whole grid on a GPU, where looking at the mask would wait for it.
        """
        if self.mask is None or self.mask.is_cuda:
            return slice(None), slice(None)
        seen = self.mask.ne(0).any(dim=0)
        rows, columns = (seen.any(dim=side).nonzero().flatten().tolist() or [0] for side in (1, 0))
        return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


class CenterPivotConv4d(nn.Module):
    """`center_pivot_conv4d` with its weights; conv1 works on the query, conv2 on the support."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
        self.conv2 = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2)
        self.stride = stride

    def forward(
        self,
        x: Tensor,  # (B, I, ha, wa, hb, wb)
    ) -> Tensor:  # (B, O, ha, wa, hb / stride, wb / stride)
        """Apply the convolution; under autocast in its dtype, as PyTorch's convolutions."""
        assert self.conv1.bias is not None and self.conv2.bias is not None
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        return center_pivot_conv4d(
            x.to(dtype),
            self.conv1.weight.to(dtype),
            self.conv1.bias.to(dtype),
            self.conv2.weight.to(dtype),
            self.conv2.bias.to(dtype),
            stride=self.stride,
        )


class GroupNorm4d(nn.GroupNorm):
    """Group norm over both grids, in channels-last memory as it comes.

    Statistics are taken per channel and then put together by group: PyTorch's channels-last kernel
    takes twice the time and loses three digits on maps of this size (8e-5 relative; this: 1e-7).
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, ha, wa, hb, wb)."""
        batch, channels = x.shape[:2]
        last = x.permute(0, 2, 3, 4, 5, 1).reshape(batch, -1, channels)
        means = last.mean(dim=1, dtype=torch.promote_types(x.dtype, torch.float32))
        variances = _variances(last, means)
        groups = (batch, self.num_groups, -1)
        mean = means.view(groups).mean(dim=2, keepdim=True)
        spread = variances.view(groups) + (means.view(groups) - mean).square()
        scale = (spread.mean(dim=2, keepdim=True) + self.eps).rsqrt() * self.weight.view(groups[1:])
        shift = self.bias.view(groups[1:]) - mean * scale
        # Without gradients nobody needs the convolution's output again.
        out = None if torch.is_grad_enabled() else last
        shift, scale = (part.to(x.dtype).view(batch, 1, -1) for part in (shift, scale))
        normed = torch.addcmul(shift, last, scale, out=out)
        return normed.view(batch, *x.shape[2:], channels).permute(0, 5, 1, 2, 3, 4)


def _variances(last: Tensor, means: Tensor) -> Tensor:
    """Biased variances (B, C) of (B, N, C); by parts that stay in the cache."""
    if torch.is_grad_enabled():
        return (last - means.unsqueeze(1)).square().mean(dim=1)
    centres = means.to(last.dtype)
    rows = max(1, _CACHED_BYTES // (last.element_size() * last.shape[0] * last.shape[2]))
    squares = [
        (part - centres.unsqueeze(1)).square_().sum(dim=1, dtype=means.dtype)
        for part in last.split(rows, dim=1)
    ]
    return torch.stack(squares).sum(0) / last.shape[1]


def squeeze_block(
    inputs: int, outputs: Sequence[int], kernels: Sequence[int], strides: Sequence[int]
) -> nn.Sequential:
    """Convolution, group norm and ReLU, once for each of `outputs`."""
    parts: list[nn.Module] = []
    for width, kernel, stride in zip(outputs, kernels, strides, strict=True):
        parts += [
            CenterPivotConv4d(inputs, width, kernel, stride),
            GroupNorm4d(GROUPS, width),
            nn.ReLU(inplace=True),
        ]
        inputs = width
    return nn.Sequential(*parts)


class HypercorrelationEncoder(nn.Module):
    """Pyramidal squeeze and top-down mixing; attribute names are the published keys'.

    Args:
        layers: the number of correlations in the levels at strides 8, 16 and 32.
    """

    def __init__(self, layers: tuple[int, int, int]) -> None:
        super().__init__()
        widths = (16, 64, 128)
        self.encoder_layer4 = squeeze_block(layers[2], widths, (3, 3, 3), (2, 2, 2))
        self.encoder_layer3 = squeeze_block(layers[1], widths, (5, 3, 3), (4, 2, 2))
        self.encoder_layer2 = squeeze_block(layers[0], widths, (5, 5, 3), (4, 4, 2))
        self.encoder_layer4to3 = squeeze_block(128, (128, 128, 128), (3, 3, 3), (1, 1, 1))
        self.encoder_layer3to2 = squeeze_block(128, (128, 128, 128), (3, 3, 3), (1, 1, 1))

    def forward(
        self,
        level2: Hypercorrelation,  # stride 8
        level3: Hypercorrelation,  # stride 16
        level4: Hypercorrelation,  # stride 32
    ) -> Tensor:  # (B, 128, h, w)
        """One map on the query grid of the finest level."""
        return self.mix(level2, level3, level4)

    def mix(
        self, level2: Hypercorrelation, level3: Hypercorrelation, level4: Hypercorrelation
    ) -> Tensor:
        """The map (B, 128, h, w), the mean over what is left of the support grid."""
        mixed = _squeezed(level4, self.encoder_layer4)
        for level, squeeze, mixer in (
            (level3, self.encoder_layer3, self.encoder_layer4to3),
            (level2, self.encoder_layer2, self.encoder_layer3to2),
        ):
            squeezed = _squeezed(level, squeeze)
            mixed = mixer(squeezed + resize_query(mixed, (squeezed.shape[2], squeezed.shape[3])))
        return mixed.mean(dim=(4, 5))


class HypercorrelationLearner(HypercorrelationEncoder):
    """The encoder and HSNet's decoder.

    Args:
        layers: as in HypercorrelationEncoder.
        grid: the decoder's output grid: "square" has twice the query grid's width in both
            directions, as the published code; "query" twice the query grid.
    """

    def __init__(self, layers: tuple[int, int, int], grid: Grid) -> None:
        super().__init__(layers)
        self.grid = grid
        self.decoder1, self.decoder2 = decoders()

    def forward(
        self,
        level2: Hypercorrelation,  # stride 8
        level3: Hypercorrelation,  # stride 16
        level4: Hypercorrelation,  # stride 32
    ) -> Tensor:  # (B, 2, 2h, 2w)
        """Logits, background and foreground, at twice the grid of the finest level."""
        mixed = self.mix(level2, level3, level4)
        height, width = mixed.shape[-2:]
        size = (2 * width, 2 * width) if self.grid == "square" else (2 * height, 2 * width)
        enlarged = F.interpolate(self.decoder1(mixed), size, mode="bilinear", align_corners=True)
        logits: Tensor = self.decoder2(enlarged)
        return logits


def decoders() -> tuple[nn.Sequential, nn.Sequential]:
    """The decoder's parts before (128 to 64 channels) and after (64 to 2) its enlargement."""
    first = nn.Sequential(
        nn.Conv2d(128, 128, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(128, 64, 3, padding=1),
        nn.ReLU(inplace=True),
    )
    second = nn.Sequential(
        nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(64, 2, 3, padding=1)
    )
    return first, second


def _squeezed(level: Hypercorrelation, block: nn.Sequential) -> Tensor:
    """A squeeze block on the correlations of a level; without gradients they never exist as one."""
    if torch.is_grad_enabled():
        squeezed: Tensor = block(level.correlations())
        return squeezed
    first, *rest = block
    assert isinstance(first, CenterPivotConv4d)
    squeezed = _correlate_and_convolve(level, first)
    for part in rest:
        squeezed = part(squeezed)
    return squeezed


def _correlate_and_convolve(level: Hypercorrelation, conv: CenterPivotConv4d) -> Tensor:
    """conv(level.correlations()), made and used up some query rows at a time."""
    assert conv.conv1.bias is not None and conv.conv2.bias is not None
    weight, stride = conv.conv2.weight, conv.stride
    bias = conv.conv1.bias + conv.conv2.bias
    batch, layers, height, width, *support = level.shape
    row = batch * width * math.prod(support) * layers * weight.element_size()
    rows = min(height, max(1, _PART_BYTES // row))
    memory = weight.new_zeros(batch, rows, width, *support, layers)
    outputs, pruned = [], []
    for start in range(0, height, rows):
        last = memory[:, : min(rows, height - start)]
        level.fill(last, start)
        last = last.contiguous()  # the last part of several images may be shorter
        outputs.append(over_support(last, weight, bias, stride))
        pruned.append(last[:, :, :, ::stride, ::stride].permute(0, 3, 4, 1, 2, 5).contiguous())
    out = torch.cat(outputs, dim=1)
    out += over_query(torch.cat(pruned, dim=3), conv.conv1.weight)
    return out.permute(0, 5, 1, 2, 3, 4)


def resize_query(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize the query grid of (B, C, ha, wa, hb, wb), bilinear with align_corners=True."""
    last = x.permute(0, 2, 3, 4, 5, 1)
    rest = last.shape[3:]
    maps = last.flatten(3).permute(0, 3, 1, 2)  # (B, hb wb C, ha, wa)
    resized = F.interpolate(maps, size, mode="bilinear", align_corners=True)
    unfolded: Tensor = resized.permute(0, 2, 3, 1).unflatten(3, rest)
    return unfolded.permute(0, 5, 1, 2, 3, 4)
