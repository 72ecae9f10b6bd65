"""The small parts of the guided networks: grid, annotation weights, guidance, heads.

Rakelly et al., arXiv 1806.07373. One matrix carries features to pixels and annotations to features.
With s the stride and p_o the place of output pixel o in the image, per axis

    D[o, i] = max(0, 1 - |p_o - c_i| / s),    c_i = s i + s - 1/2   (position i's centre)

    decoder:     scores -> D_y scores D_x^T            published: a 64x64 transposed convolution
    annotation:  m_k = D_y^T a_k D_x / s^2             published: a 64x64 convolution
                 w_k = m_k / (1e-6 + sum m_k)
    guidance:    z_k = sum over positions of f w_k
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastfss.encoders.fcn_vgg import FCNVGG
from fastfss.encoders.pointwise import pointwise

VALUES = 2  # of a task's annotation: 0 background, 1 object
_EPSILON = 1e-6  # added to the sum of an annotation's weights
_DILATION = 11  # side of the maximum filter that widens points for the early networks
_LOW, _HIGH = -128.0, 128.0  # what 0 and 1 become beside the pixels of the early networks


@dataclass(frozen=True)
class Grid:
    """Where the positions of a feature map lie in the image.

    Attributes:
        stride: pixels between positions.
        fades: as published, for `FCNVGG`: centres at s i + s - 1/2, and scores fade to 0 over the
            outer s pixels of the image. Maps of other encoders have their centres at
            s i + (s - 1) / 2, and the outermost scores go on to the border.
    """

    stride: int
    fades: bool

    @staticmethod
    def of(encoder: nn.Module, stride: int) -> Grid:
        """The grid of an encoder's map of that stride."""
        return Grid(stride, isinstance(encoder, FCNVGG))

    def weights(
        self, cells: int, image: int, pixels: int, like: Tensor
    ) -> Tensor:  # (pixels, cells), dtype and device of `like`
        """Of each pixel the bilinear weights of the positions along one axis.

        Args:
            cells: positions along the axis.
            image: pixels of the encoded image.
            pixels: pixels wanted, of the image shrunk or enlarged to so many.
            like: gives device and dtype.
        """
        of_pixel = torch.arange(pixels, device=like.device, dtype=torch.float32)
        of_cell = torch.arange(cells, device=like.device, dtype=torch.float32)
        at = (of_pixel + 0.5) * (image / pixels) - 0.5
        if self.fades:
            at = (at + 0.5) / self.stride - 1
        else:
            at = ((at + 0.5) / self.stride - 0.5).clamp(0, cells - 1)
        return (1 - (at[:, None] - of_cell).abs()).clamp_min(0).to(like.dtype)

    def decode(
        self,
        scores: Tensor,  # (B, A, h, w)
        image: tuple[int, int],
        size: tuple[int, int],
    ) -> Tensor:  # (B, A, H, W)
        """Enlarge scores to `size`; `image` is the size that was encoded."""
        rows, columns = (
            self.weights(cells, *pixels, scores)
            for cells, pixels in zip(scores.shape[-2:], zip(image, size, strict=True), strict=True)
        )
        return rows @ (scores @ columns.T)

    def mass(
        self,
        annotations: Tensor,  # (B, A, H, W): 0/1
        image: tuple[int, int],
        cells: tuple[int, int],
    ) -> Tensor:  # (B, A, h, w)
        """How much of each annotation falls on each position; H, W may differ from the image's.

        An annotation of another size weighs as if it were enlarged to the image's.
        """
        height, width = annotations.shape[-2:]
        rows = self.weights(cells[0], image[0], height, annotations)
        columns = self.weights(cells[1], image[1], width, annotations)
        area = (image[0] / height) * (image[1] / width) / self.stride**2
        return (rows.T @ annotations @ columns) * area


def one_hot(
    masks: Tensor,  # (B, H, W) of {0, 1, ..., 255}
    values: int,
    dtype: torch.dtype,
) -> Tensor:  # (B, values, H, W)
    """Channel k is 1 where the mask is k; what nothing is said of, 255, is 0 in every channel."""
    if masks.dtype == torch.bool:
        masks = masks.byte()
    numbers = torch.arange(values, device=masks.device, dtype=masks.dtype)
    return (masks.unsqueeze(1) == numbers[:, None, None]).to(dtype)


def normalised_mass(mass: Tensor) -> Tensor:
    """w_k of m_k: (..., h, w), the sum of each at most 1."""
    return mass / (_EPSILON + mass.sum((-2, -1), keepdim=True))


def pooled(
    features: Tensor,  # (B, C, h, w)
    weights: Tensor,  # (B, A, h, w)
) -> Tensor:  # (B, A, C)
    """z_k: the features summed with the weights of each value."""
    return weights.flatten(2) @ features.flatten(2).transpose(1, 2)


def average_guidance(
    guidance: Tensor,  # (B, K, ..., C)
    weights: Tensor,  # (B, K, ...)
) -> Tensor:  # (B, ..., C)
    """The published running mean over the shots: sum of w z / sum of w, 0 where no w is."""
    total = weights.sum(dim=1).clamp_min(torch.finfo(weights.dtype).tiny)
    return (guidance * weights.unsqueeze(-1)).sum(dim=1) / total.unsqueeze(-1)


def before_the_first_empty(
    present: Tensor,  # (B, K, A): 0/1
) -> Tensor:  # (B, K, 1): 0/1
    """1 for the shots that the published `guide` reads: it stops at one without annotation."""
    return present.amax(dim=2, keepdim=True).cumprod(dim=1)


def early_annotation(
    annotations: Tensor,  # (B, A, H', W'): 0/1
    size: tuple[int, int],
) -> Tensor:  # (B, A, H, W): 0/1
    """The annotation widened for the early networks: an 11x11 maximum, at the image's size."""
    if annotations.shape[-2:] != size:
        # The maximum over each pixel's share: no point is lost.
        annotations = F.adaptive_max_pool2d(annotations, size)
    return F.max_pool2d(annotations, _DILATION, stride=1, padding=_DILATION // 2)


def annotated_image(
    images: Tensor,  # (B, 3, H, W)
    annotations: Tensor,  # (B, A, H, W): 0/1, of early_annotation
) -> Tensor:  # (B, 3 + A, H, W)
    """What the encoders of the early networks take."""
    scaled = annotations.to(images.dtype) * (_HIGH - _LOW) + _LOW
    return torch.cat([images, scaled], dim=1)


class PairHead(nn.Module):
    """fc7, ReLU, dropout of channels, score: a 1x1 head on a query's features beside guidance.

    `fc7` of [q; g] is W_q q + W_g g + b, so the query's part is computed once for all guidance and
    nothing is tiled over the map.

    Args:
        query, guidance: channels of each.
        hidden: channels of fc7.
        outputs: channels of the scores.
        query_first: whether the published concatenation has the query first.
    """

    def __init__(
        self, query: int, guidance: int, hidden: int, outputs: int, *, query_first: bool = True
    ) -> None:
        super().__init__()
        self.fc7 = nn.Conv2d(query + guidance, hidden, 1)
        self.drop = nn.Dropout2d()
        self.score = nn.Conv2d(hidden, outputs, 1)
        self.parts = (query, guidance)
        self.query_first = query_first

    def query_weight(self) -> Tensor:
        """W_q, (hidden, query, 1, 1)."""
        return self.fc7.weight[:, self._place(0)]

    def guidance_weight(self) -> Tensor:
        """W_g, (hidden, guidance, 1, 1)."""
        return self.fc7.weight[:, self._place(1)]

    def of_query(self, features: Tensor) -> Tensor:
        """W_q q + b: (B, query, h, w) -> (B, hidden, h, w)."""
        return pointwise(features, self.query_weight(), self.fc7.bias)

    def of_guidance(self, guidance: Tensor) -> Tensor:
        """W_g g: (B, A, guidance) -> (B, A, hidden)."""
        return F.linear(guidance, self.guidance_weight()[:, :, 0, 0])

    def of_guidance_map(self, features: Tensor) -> Tensor:
        """W_g f: (B, guidance, h, w) -> (B, hidden, h, w)."""
        return pointwise(features, self.guidance_weight())

    def scores(
        self,
        hidden: Tensor,  # (B, A, hidden, h, w): the sum of both parts
    ) -> Tensor:  # (B, A, outputs, h, w)
        """What fc7 says of each pair, scored; changes `hidden`."""
        flat = self.drop(F.relu(hidden.flatten(0, 1), inplace=True))
        scored = pointwise(flat, self.score.weight, self.score.bias)
        return scored.view(*hidden.shape[:2], *scored.shape[1:])

    def _place(self, part: int) -> slice:
        first, second = self.parts if self.query_first else self.parts[::-1]
        behind = (part == 0) != self.query_first
        return slice(first, first + second) if behind else slice(0, first)


def fixed_annotation_kernel() -> Tensor:
    """The published `anno_enc.weight` (1, 1, 64, 64), which checkpoints hold."""
    kernel = _published_kernel()
    return (kernel / kernel.sum())[None, None]


def fixed_decoder_kernel(channels: int) -> Tensor:
    """The published `decoder.weight` (C, C, 64, 64): the kernel on the diagonal."""
    return torch.eye(channels)[:, :, None, None] * _published_kernel()


def _published_kernel() -> Tensor:
    side = 1 - (torch.arange(64, dtype=torch.float64) - 31.5).abs() / 32
    return torch.outer(side, side).float()
