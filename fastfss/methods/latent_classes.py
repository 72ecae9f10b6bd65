"""Latent classes: pseudo masks for what training images show beside their annotated objects.

Yang et al., ICCV 2021. There is no public code of this part; it follows the paper's description,
and what that leaves open is an option of `MiningConfig`. `MLC.mine` and `MLC.pseudo_mask` do the
same with one's own images.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastfss.data.masks import IGNORED
from fastfss.errors import expected
from fastfss.methods.prototypes import upsample
from fastfss.ops import masked_average_pool, prototype_match

Upsampling = Literal["nearest", "bilinear"]
Objects = Literal["labelled", "prototype", "ignored"]
IgnoredPixels = Literal["kept", "labelled"]


@dataclass(frozen=True)
class MiningConfig:
    """What the paper leaves open about the mining of latent classes.

    Attributes:
        clusters: n, the sub-clusters of all foreground prototypes; 254 at most.
        seed: of the clustering's start.
        iterations: of the clustering, at most.
        upsampling: "nearest" takes the best centroid at feature resolution and enlarges the labels;
            "bilinear" enlarges the scores first.
        objects: pixels of annotated objects are "labelled" like any other, get the sub-cluster of
            their object's own "prototype" as a whole, or are "ignored".
        ignored_pixels: what annotators left out (255) is "kept" ignored or "labelled" like any
            other.
        min_similarity: positions whose best cosine is lower are ignored; -1 ignores none.
    """

    clusters: int = 50
    seed: int = 0
    iterations: int = 100
    upsampling: Upsampling = "nearest"
    objects: Objects = "labelled"
    ignored_pixels: IgnoredPixels = "kept"
    min_similarity: float = -1.0

    def __post_init__(self) -> None:
        if not 1 <= self.clusters < IGNORED:
            raise expected("clusters", f"1 to {IGNORED - 1}", str(self.clusters))
        if self.iterations < 1:
            raise expected("iterations", "at least 1", str(self.iterations))
        if not -1 <= self.min_similarity <= 1:
            raise expected("min_similarity", "a cosine, -1 to 1", str(self.min_similarity))
        for name, kinds in (
            ("upsampling", Upsampling),
            ("objects", Objects),
            ("ignored_pixels", IgnoredPixels),
        ):
            if getattr(self, name) not in get_args(kinds):
                wanted = f"one of {', '.join(map(repr, get_args(kinds)))}"
                raise expected(name, wanted, repr(getattr(self, name)))


@dataclass(frozen=True, eq=False)
class LatentClasses:
    """The mined centroids, which annotate any image densely, extra unlabelled ones too.

    Attributes:
        centroids: (n + 1, C) of length 1: the background's, then the sub-clusters'.
        classes: the labels of label maps that are objects; None: all but 0 and 255.
        config: how they were mined.
    """

    centroids: Tensor
    classes: tuple[int, ...] | None = None
    config: MiningConfig = field(default_factory=MiningConfig)

    def annotate(
        self,
        features: Tensor,
        labels: Tensor | None = None,
        size: tuple[int, int] | None = None,
    ) -> Tensor:
        """Dense pseudo masks: every position goes to the centroid with the largest cosine.

        Args:
            features: (B, C, h, w), of the encoder that the centroids were mined with.
            labels: (B, H, W) integers, the images' label maps; None for unlabelled images.
            size: of the masks; by default that of `labels`, or of the features without them.

        Returns:
            (B, *size) uint8: 0 the background, 1..n latent classes, 255 ignored.

        Raises:
            ValueError: features of other channels, or labels of another batch or size.
        """
        channels = self.centroids.shape[1]
        if features.ndim != 4 or features.shape[1] != channels:
            raise expected("features", f"(B, {channels}, h, w)", str(tuple(features.shape)))
        if labels is not None:
            size = size or (labels.shape[-2], labels.shape[-1])
            if labels.shape != (features.shape[0], *size):
                came = str(tuple(labels.shape))
                raise expected("labels", f"{(features.shape[0], *size)}", came)
        size = size or (features.shape[2], features.shape[3])
        scores = prototype_match(features, self.centroids.to(features))  # (B, n + 1, h, w)
        if self.config.upsampling == "bilinear":
            scores = upsample(scores, size)
        similarity, best = scores.max(dim=1)
        ignored = similarity < self.config.min_similarity
        masks = enlarge_labels(best.masked_fill(ignored, IGNORED), size)
        if labels is not None:
            masks = self._with_annotation(masks, features, labels)
        return masks.to(torch.uint8)

    def _with_annotation(self, masks: Tensor, features: Tensor, labels: Tensor) -> Tensor:
        if self.config.objects != "labelled":
            classes = self.classes or labels_in(labels)
            objects = object_masks(labels, classes)  # (B, N, H, W)
            if self.config.objects == "ignored":
                masks = masks.masked_fill(objects.any(dim=1), IGNORED)
            elif classes:
                prototypes = label_prototypes(features, labels, classes)[0][:, 1:]
                clusters = self.centroids[1:].to(prototypes)
                nearest = (prototypes @ clusters.T).argmax(dim=2) + 1  # (B, N)
                own = (nearest[:, :, None, None] * objects).amax(dim=1)  # objects do not overlap
                masks = torch.where(objects.any(dim=1), own, masks)
        if self.config.ignored_pixels == "kept":
            masks = masks.masked_fill(labels == IGNORED, IGNORED)
        return masks


def mine_latent_classes(
    samples: Iterable[tuple[Tensor, Tensor]],
    *,
    classes: Sequence[int] | None = None,
    config: MiningConfig | None = None,
) -> LatentClasses:
    """Cluster the objects of the training images into sub-clusters; average their backgrounds.

    Every object's masked average is one vector of the clustering (spherical k-means). Every image's
    background average, of length 1, goes into the mean that is the background's centroid.

    Args:
        samples: features (B, C, h, w) and label maps (B, H, W) of integers, as encoded by the
            baseline's encoder.
        classes: the labels that are objects, the base classes; any other becomes background, as in
            the paper's protocol; None: all but 0. 255 is neither.
        config: the options; the defaults are the plainest reading of the paper.

    Returns:
        The centroids, float32.

    Raises:
        ValueError: fewer objects than clusters, or no background.
    """
    config = config or MiningConfig()
    objects, backgrounds = [], []
    for features, labels in samples:
        prototypes, present = label_prototypes(features, labels, classes)
        objects.append(prototypes[:, 1:][present[:, 1:]])
        backgrounds.append(prototypes[:, 0][present[:, 0]])
    found = sum(len(one) for one in objects)
    if found < config.clusters:
        wanted = f"at least as many objects as clusters, {config.clusters}"
        raise expected("samples", wanted, str(found))
    if not any(len(one) for one in backgrounds):
        raise expected("samples", "background in at least one image", "none")
    background = F.normalize(torch.cat(backgrounds).float(), dim=1).mean(dim=0, keepdim=True)
    clusters, _ = spherical_kmeans(
        torch.cat(objects).float(),
        config.clusters,
        seed=config.seed,
        iterations=config.iterations,
    )
    centroids = torch.cat([F.normalize(background, dim=1), clusters])
    return LatentClasses(centroids, None if classes is None else tuple(classes), config)


def labels_in(labels: Tensor) -> tuple[int, ...]:
    """The labels of a label map that are neither 0 nor 255."""
    return tuple(n for n in map(int, labels.unique()) if n not in (0, IGNORED))


def object_masks(labels: Tensor, classes: Sequence[int]) -> Tensor:
    """(B, H, W) -> bool (B, N, H, W), one mask a class."""
    values = torch.tensor(classes, dtype=labels.dtype, device=labels.device)
    return labels.unsqueeze(1) == values[:, None, None]


def label_prototypes(
    features: Tensor, labels: Tensor, classes: Sequence[int] | None = None
) -> tuple[Tensor, Tensor]:
    """Masked averages of the background and of every class, the features enlarged to the labels.

    Args:
        features: (B, C, h, w).
        labels: (B, H, W) integers; 255 belongs to nothing.
        classes: N labels, all others being background; None: those that occur.

    Returns:
        (B, 1 + N, C), the background first, and bool (B, 1 + N): which of them have pixels.

    Raises:
        ValueError: labels of another batch.
    """
    if labels.ndim != 3 or labels.shape[0] != features.shape[0]:
        wanted = f"(B, H, W) with B = {features.shape[0]}"
        raise expected("labels", wanted, str(tuple(labels.shape)))
    objects = object_masks(labels, labels_in(labels) if classes is None else classes)
    background = ~objects.any(dim=1, keepdim=True) & (labels != IGNORED).unsqueeze(1)
    masks = torch.cat([background, objects], dim=1)
    return masked_average_pool(features, masks, resize="features"), masks.any(dim=3).any(dim=2)


def spherical_kmeans(
    vectors: Tensor, clusters: int, *, seed: int = 0, iterations: int = 100
) -> tuple[Tensor, Tensor]:
    """Cluster directions: maximise the sum of <x_i, c_a(i)> with all x and c of length 1.

    Dhillon and Modha, 2001, started as k-means++ with the distance 1 - cosine. In float64 on the
    CPU, so that a seed gives the same clusters everywhere. A cluster that runs empty takes over the
    vector that is represented worst, so that none is empty in the end.

    Args:
        vectors: (N, C), N >= clusters.
        clusters: how many.
        seed: of the start.
        iterations: at most; it ends earlier when no assignment changes.

    Returns:
        Centroids (clusters, C) of length 1, in the vectors' dtype, and the assignment (N,) int64.

    Raises:
        ValueError: fewer vectors than clusters.
    """
    if vectors.ndim != 2 or len(vectors) < clusters or clusters < 1:
        wanted = f"(N, C) with N >= clusters, {clusters}, of at least 1"
        raise expected("vectors", wanted, str(tuple(vectors.shape)))
    units = F.normalize(vectors.detach().cpu().double(), dim=1)
    centroids = units[_spread_out(units, clusters, torch.Generator().manual_seed(seed))]
    assigned = torch.full((len(units),), -1)
    for _ in range(iterations):
        before, assigned = assigned, _assign(units @ centroids.T)
        if torch.equal(assigned, before):
            break
        sums = torch.zeros_like(centroids).index_add_(0, assigned, units)
        centroids = F.normalize(sums, dim=1)
    return centroids.to(vectors), assigned.to(vectors.device)


def _spread_out(units: Tensor, clusters: int, generator: torch.Generator) -> list[int]:
    """k-means++: each next start is drawn with the probability of its distance from the others."""
    chosen = [int(torch.randint(len(units), (), generator=generator))]
    distance = 1 - units @ units[chosen[0]]
    while len(chosen) < clusters:
        # The least value keeps the draw possible where all vectors are equal.
        weights = distance.clamp_min(1e-12)
        chosen.append(int(torch.multinomial(weights, 1, generator=generator)))
        distance = torch.minimum(distance, 1 - units @ units[chosen[-1]])
    return chosen


def _assign(similarity: Tensor) -> Tensor:
    """(N, K) -> (N,): the most similar centroid; empty ones get the worst represented vectors."""
    best, assigned = similarity.max(dim=1)
    counts = assigned.bincount(minlength=similarity.shape[1])
    for empty in (counts == 0).nonzero().flatten().tolist():
        spare = best.masked_fill(counts[assigned] < 2, torch.inf)
        donor = int(spare.argmin())
        counts[assigned[donor]] -= 1
        counts[empty] += 1
        assigned[donor], best[donor] = empty, 1.0
    return assigned


def enlarge_labels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, h, w) -> (B, *size): the nearest position, the grids' corners together.

    That is the geometry of the bilinear resizes of this family (align_corners=True).
    """
    rows, columns = (
        torch.linspace(0, old - 1, new, device=labels.device).round().long()
        for old, new in zip(labels.shape[1:], size, strict=True)
    )
    return labels[:, rows[:, None], columns]


class LatentDecoder(nn.Sequential):
    """The mining branch's light decoder: 3x3 convolution, batch norm, ReLU, 1x1 classifier.

    It works at feature resolution: (B, C, h, w) -> (B, labels, h, w).

    Args:
        channels: C.
        labels: n + 1.
        width: channels between the two convolutions.
    """

    def __init__(self, channels: int, labels: int, width: int = 256) -> None:
        super().__init__(
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, labels, 1),
        )
