"""HSNet's learner: 4D correlations of three levels squeezed into one map, and its decoder.

Min, Kang, Cho: "Hypercorrelation Squeeze for Few-Shot Segmentation", ICCV 2021, sections 4.2, 4.3.
Correlations are (B, C, ha, wa, hb, wb): query grid, support grid; channels last in memory.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastfss.ops import center_pivot_block, center_pivot_conv4d, dense_correlation
from fastfss.ops._branch import Branch
from fastfss.ops._center_pivot_torch import group_norm4d
from fastfss.ops._gpu_inference import enlarge, run
from fastfss.ops.center_pivot_parts import center_pivot_block_in_parts
from fastfss.ops.dense_correlation import dense_correlation_into

Grid = Literal["square", "query"]
GROUPS = 4


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
        out: Tensor,  # (B, L, rows, wa, hb, wb): zeros, or what an earlier call left
        start: int,
    ) -> None:
        """Write the correlations of the query's rows from `start` on."""


# As they are, or a level that makes them: (B, L, ha, wa, hb, wb).
Correlations = Tensor | Hypercorrelation


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
        queries = [q[:, :, start : start + out.shape[2]] for q in self.queries]
        dense_correlation_into(out[..., self._box[0], self._box[1]], queries, self._boxed_supports)

    @cached_property
    def _boxed_supports(self) -> list[Tensor]:
        """In one piece each: copied once where the box is smaller, not by every part."""
        boxed = [s[:, :, self._box[0], self._box[1]] for s in self.supports]
        return [
            b.contiguous(memory_format=torch.channels_last) if b.shape != s.shape else s
            for b, s in zip(boxed, self.supports, strict=True)
        ]

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
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        weights = (one.to(dtype) for one in self.weights())
        return center_pivot_conv4d(x.to(dtype), *weights, stride=self.stride)

    def normed(self, x: Correlations, norm: nn.GroupNorm) -> Tensor:
        """The convolution, a group norm and ReLU; without gradients."""
        weights = (*self.weights(), norm.weight, norm.bias)
        stride, groups, eps = self.stride, norm.num_groups, norm.eps
        if isinstance(x, Hypercorrelation):
            # What the parts write in place, an exported or compiled graph keeps as a whole.
            if not self.conv1.weight.is_cuda and not torch.compiler.is_compiling():
                return center_pivot_block_in_parts(
                    x.fill, x.shape, *weights, stride=stride, groups=groups, eps=eps
                )
            x = x.correlations()
        return center_pivot_block(x, *weights, stride=stride, groups=groups, eps=eps)

    def arrange_(self) -> None:
        """On a GPU keep the weights (O, I, k, k) tap by tap, as its kernels of many channels do."""
        for conv in (self.conv1, self.conv2):
            if conv.weight.is_cuda and conv.in_channels >= 16:
                size = conv.weight.shape[2:]
                by_tap = conv.weight.detach().flatten(2).permute(2, 1, 0).contiguous()
                conv.weight = nn.Parameter(by_tap.permute(2, 1, 0).unflatten(2, size))

    def weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Weight and bias over the query, and over the support."""
        assert self.conv1.bias is not None and self.conv2.bias is not None
        return self.conv1.weight, self.conv1.bias, self.conv2.weight, self.conv2.bias


class GroupNorm4d(nn.GroupNorm):
    """Group norm over both grids, in channels-last memory as it comes."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, ha, wa, hb, wb)."""
        return group_norm4d(x, self.weight, self.bias, self.num_groups, self.eps)


def squeeze_block(
    inputs: int, outputs: Sequence[int], kernels: Sequence[int], strides: Sequence[int]
) -> SqueezeBlock:
    """Convolution, group norm and ReLU, once for each of `outputs`."""
    parts: list[nn.Module] = []
    for width, kernel, stride in zip(outputs, kernels, strides, strict=True):
        parts += [
            CenterPivotConv4d(inputs, width, kernel, stride),
            GroupNorm4d(GROUPS, width),
            nn.ReLU(inplace=True),
        ]
        inputs = width
    return SqueezeBlock(*parts)


class SqueezeBlock(nn.Sequential):
    """Convolutions, group norms and ReLUs, in turns."""

    def forward(self, x: Correlations) -> Tensor:
        """Squeeze maps (B, I, ha, wa, hb, wb) or the correlations of a level.

        Without gradients the three steps are one, and correlations never exist as a whole.
        """
        parts = list(self)
        if torch.is_grad_enabled():
            squeezed = x if isinstance(x, Tensor) else x.correlations()
            for part in parts:
                squeezed = part(squeezed)
            return squeezed
        for conv, norm in zip(parts[::3], parts[1::3], strict=True):
            assert isinstance(conv, CenterPivotConv4d) and isinstance(norm, GroupNorm4d)
            x = conv.normed(x, norm)
        assert isinstance(x, Tensor)
        return x


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
        level2: Correlations,  # stride 8
        level3: Correlations,  # stride 16
        level4: Correlations,  # stride 32
    ) -> Tensor:  # (B, 128, h, w)
        """One map on the query grid of the finest level."""
        return self.mix(level2, level3, level4)

    def mix(self, level2: Correlations, level3: Correlations, level4: Correlations) -> Tensor:
        """The map (B, 128, h, w), the mean over what is left of the support grid."""
        first = self.encoder_layer4[0]
        assert isinstance(first, CenterPivotConv4d)
        device = first.conv1.weight.device
        with (of_level4 := Branch(device)):
            mixed: Tensor = self.encoder_layer4(level4)
        with (of_level3 := Branch(device)):
            squeezed = self.encoder_layer3(level3)
            of_level4.join()
            mixed = self.encoder_layer4to3(_enlarged_sum(mixed, squeezed))
        squeezed = self.encoder_layer2(level2)
        of_level3.join()
        mixed = self.encoder_layer3to2(_enlarged_sum(mixed, squeezed))
        # As neighbours in memory, which are read several times as fast.
        return mixed.permute(0, 2, 3, 4, 5, 1).flatten(3, 4).mean(dim=3).permute(0, 3, 1, 2)


def _enlarged_sum(coarse: Tensor, fine: Tensor) -> Tensor:
    """fine plus coarse on its query grid; both (B, C, ha, wa, hb, wb)."""
    last = [one.permute(0, 2, 3, 4, 5, 1) for one in (coarse, fine)]
    if all(one.is_contiguous() for one in last):
        size = (fine.shape[2], fine.shape[3])
        flat = enlarge(last[0].flatten(3), size, last[1].flatten(3))
        if flat is not None:
            return flat.view(last[1].shape).permute(0, 5, 1, 2, 3, 4)
    return fine + resize_query(coarse, (fine.shape[2], fine.shape[3]))


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
        level2: Correlations,  # stride 8
        level3: Correlations,  # stride 16
        level4: Correlations,  # stride 32
    ) -> Tensor:  # (B, 2, 2h, 2w)
        """Logits, background and foreground, at twice the grid of the finest level."""
        mixed = self.mix(level2, level3, level4)
        size = self.output_size(mixed.shape[-2], mixed.shape[-1])
        decoded = run([self.decoder1], mixed)
        last = enlarge(decoded.permute(0, 2, 3, 1), size)
        if last is None:
            enlarged = F.interpolate(decoded, size, mode="bilinear", align_corners=True)
        else:
            enlarged = last.permute(0, 3, 1, 2)
        return run([self.decoder2], enlarged)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """The grid of the logits of a query grid."""
        return (2 * width, 2 * width) if self.grid == "square" else (2 * height, 2 * width)


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


def resize_query(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize the query grid of (B, C, ha, wa, hb, wb), bilinear with align_corners=True."""
    last = x.permute(0, 2, 3, 4, 5, 1)
    rest = last.shape[3:]
    maps = last.flatten(3).permute(0, 3, 1, 2)  # (B, hb wb C, ha, wa)
    resized = F.interpolate(maps, size, mode="bilinear", align_corners=True)
    unfolded: Tensor = resized.permute(0, 2, 3, 1).unflatten(3, rest)
    return unfolded.permute(0, 5, 1, 2, 3, 4)
