"""PPNet's graph over unlabelled images: their superpixels refine the prototypes.

Liu, Zhang, Zhang, He, ECCV 2020. Of every unlabelled image the superpixels that
resemble a class most are its candidates X. Within an image they attend to each other,

    A = softmax(X W_1 (X W_1)^T / sqrt(d)),   X <- X + ReLU(A X W_t),

and the class's prototypes P to the candidates Z of a group of images, group after group:

    U = softmax(P W_b (Z W_a)^T / sqrt(d)) Z,   P <- lambda P + (1 - lambda) U.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastfss.errors import expected, import_extra


@dataclass(frozen=True)
class GraphConfig:
    """How unlabelled images refine the prototypes; the published values for one shot.

    For five shots: GraphConfig(topk=5, threshold=0.9, group=6, blend=0.9).

    Attributes:
        topk: at most so many candidates a class and image.
        threshold: the cosine with the class's global vector that a candidate must exceed.
        group: images that a refinement looks at; the published test script has 3.
        blend: lambda, how much of a prototype stays.
    """

    topk: int = 30
    threshold: float = 0.5
    group: int = 2
    blend: float = 0.8

    def __post_init__(self) -> None:
        for name in ("topk", "group"):
            if getattr(self, name) < 1:
                raise expected(name, "a positive number", str(getattr(self, name)))
        if not 0 <= self.blend <= 1:
            raise expected("blend", "a number from 0 to 1", str(self.blend))


@dataclass(frozen=True, eq=False)
class Unlabelled:
    """Unlabelled images as the graph sees them: the mean feature of each superpixel.

    They belong to no shot and no way: every class of a query, the background too, looks at all of
    them. So they are a value beside the tasks and not a part of one.

    Attributes:
        features: (B, U, S, C), B episodes of U images; zero where there is no superpixel.
        present: (B, U, S) bool.
    """

    features: Tensor
    present: Tensor

    def __post_init__(self) -> None:
        if self.features.ndim != 4 or self.present.shape != self.features.shape[:3]:
            came = f"{tuple(self.features.shape)} and {tuple(self.present.shape)}"
            raise expected("features, present", "(B, U, S, C) and (B, U, S)", came)

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Unlabelled:
        """The same on another device or in another floating-point dtype."""
        features = self.features.to(device=device, dtype=dtype)
        return Unlabelled(features, self.present.to(device=device))


def segment_means(features: Tensor, segments: Tensor) -> Unlabelled:
    """The mean feature of every superpixel that is left at the map's size.

    Args:
        features: (B, U, C, h, w).
        segments: (B, U, H, W) integers, a number a superpixel; brought to (h, w) with "nearest".
    """
    batch, images, channels = features.shape[:3]
    # float64 holds every number that a superpixel may have.
    small = F.interpolate(segments.double(), features.shape[3:], mode="nearest").long()
    numbers, ids = torch.unique(small, return_inverse=True)
    count = len(numbers)
    first = count * torch.arange(batch * images, device=ids.device).unsqueeze(1)
    rows = (ids.flatten(2).flatten(0, 1) + first).flatten()
    values = features.flatten(3).transpose(2, 3).reshape(-1, channels)
    sums = values.new_zeros(batch * images * count, channels).index_add_(0, rows, values)
    sizes = torch.bincount(rows, minlength=len(sums)).unsqueeze(1)
    means = sums / sizes.clamp_min(1).to(sums.dtype)
    shape = (batch, images, count)
    return Unlabelled(means.unflatten(0, shape), (sizes.squeeze(1) > 0).unflatten(0, shape))


def superpixels(image: Tensor, count: int = 100) -> Tensor:
    """SLIC superpixels (H, W) int64 of an image (3, H, W), uint8.

    Raises:
        MissingExtraError: without scikit-image.
    """
    segmentation = import_extra(
        "skimage.segmentation", extra="superpixels", purpose="Cutting images into superpixels"
    )
    pixels = image.permute(1, 2, 0).cpu().numpy()
    return torch.from_numpy(segmentation.slic(pixels, n_segments=count, start_label=0)).long()


class LatentGraph(nn.Module):
    """The four matrices of the graph.

    Args:
        channels: of the features; attention has a quarter of them.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        width = max(1, channels // 4)
        # Published names: W_1, W_t, W_a (candidates) and W_b (prototypes).
        self.inner_w1 = nn.Linear(channels, width, bias=False)
        self.inner_trans = nn.Linear(channels, channels, bias=False)
        self.inter_w1 = nn.Linear(channels, width, bias=False)
        self.inter_w2 = nn.Linear(channels, width, bias=False)

    def forward(
        self, prototypes: Tensor, vectors: Tensor, unlabelled: Unlabelled, config: GraphConfig
    ) -> tuple[Tensor, list[Tensor]]:
        """Refine prototypes.

        Args:
            prototypes: P, (B, N, G, C) of N classes.
            vectors: the classes' global vectors (B, N, C), which choose the candidates.
            unlabelled: of B episodes, or of one for all.
            config: numbers.

        Returns:
            The refined P, and U of every group.
        """
        candidates, chosen = self.candidates(vectors, unlabelled, config)
        keys = self.inter_w1(candidates)
        attended = []
        for start in range(0, candidates.shape[2], config.group):  # each starts at the last P
            images = slice(start, start + config.group)
            read = _attend(
                self.inter_w2(prototypes),
                keys[:, :, images].flatten(2, 3),
                candidates[:, :, images].flatten(2, 3),
                chosen[:, :, images].flatten(2, 3),
            )
            attended.append(read)
            prototypes = config.blend * prototypes + (1 - config.blend) * read
        return prototypes, attended

    def candidates(
        self, vectors: Tensor, unlabelled: Unlabelled, config: GraphConfig
    ) -> tuple[Tensor, Tensor]:
        """The candidates (B, N, U, k, C) of each class and image, and which of them there are."""
        features = unlabelled.features.to(vectors.dtype).expand(len(vectors), -1, -1, -1)
        cosines = torch.einsum("bnc,busc->bnus", _unit(vectors), _unit(features))
        cosines = cosines.masked_fill(~unlabelled.present.unsqueeze(1), -torch.inf)
        best, at = cosines.topk(min(config.topk, cosines.shape[3]), dim=3)
        chosen = best > config.threshold  # they come sorted, so this cuts the list at its last one
        classes = vectors.shape[1]
        index = at.unsqueeze(4).expand(-1, -1, -1, -1, features.shape[3])
        found = features.unsqueeze(1).expand(-1, classes, -1, -1, -1).gather(3, index)
        keys = self.inner_w1(found)
        moved = found + F.relu(self.inner_trans(_attend(keys, keys, found, chosen)))
        several = (chosen.sum(dim=3) > 1)[..., None, None]
        return torch.where(several, moved, found), chosen


def _attend(query: Tensor, key: Tensor, value: Tensor, present: Tensor) -> Tensor:
    """softmax(query key^T / sqrt(d)) value over what is present; zeros where nothing is.

    Args:
        query: (..., Q, d).
        key: (..., K, d).
        value: (..., K, C).
        present: (..., K) bool.
    """
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    # Not -inf, of which a softmax over nothing makes NaN, in the gradient too.
    weights = scores.masked_fill(~present.unsqueeze(-2), torch.finfo(scores.dtype).min).softmax(-1)
    read: Tensor = (weights * present.unsqueeze(-2)) @ value
    return read


def _unit(vectors: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / norms.clamp_min(1e-8)
