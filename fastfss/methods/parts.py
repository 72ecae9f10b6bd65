"""Part prototypes: k-means over a class's local feature vectors.

Liu, Zhang, Zhang, He: "Part-aware Prototype Network for Few-shot Semantic Segmentation", ECCV 2020.
With x the vectors and c_g the centres, a round is

    a(x) = argmin_g |x - c_g|^2 = argmax_g <x, c_g> - |c_g|^2 / 2
    c_g <- mean of the x with a(x) = g

The vectors are the cells under a mask of feature maps F that are enlarged by a bilinear resize U.
Neither U F nor the list of vectors is ever made, since both steps are linear in F:

    <U F, c> = U <F, c>,        sum over the cells with a = g of U F = <F, U^T [a = g]>

so that a round is a product of the map with G centres, a resize of G channels, and masked average
pooling, for all episodes at once and without regard to how many vectors each has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from fastfss.errors import expected
from fastfss.ops import masked_average_pool

EmptyCluster = Literal["zero", "previous"]

# A mask with no more cells than this is read at full size (Liu et al., the published code).
_FEW = 10


@dataclass(frozen=True)
class PartConfig:
    """How a class becomes prototypes: centre + alpha * global vector, one for each part.

    Attributes:
        parts: centres a class.
        alpha: weight of the class's global vector.
        rounds: of k-means.
        foreground_enlarge: how many times the map is enlarged for the local vectors of a way.
        background_enlarge: likewise, of the background.
        empty: what the centre of an empty cluster is: "zero" as published, or "previous", where it
            was.
    """

    parts: int = 5
    alpha: float = 0.8
    rounds: int = 10
    foreground_enlarge: int = 2
    background_enlarge: int = 1
    empty: EmptyCluster = "zero"

    def __post_init__(self) -> None:
        for name in ("parts", "rounds", "foreground_enlarge", "background_enlarge"):
            if getattr(self, name) < 1:
                raise expected(name, "a positive number", str(getattr(self, name)))
        if self.empty not in get_args(EmptyCluster):
            raise expected("empty", '"zero" or "previous"', repr(self.empty))


@dataclass(frozen=True, eq=False)
class LocalVectors:
    """The vectors of a class: cells of M enlarged maps, in the order map, row, column.

    Attributes:
        maps: (B, M, C, h, w).
        cells: of each size that a map is enlarged to, (B, M, H', W'), 1 where a vector is read and
            0 elsewhere. A map has cells of one size only.
    """

    maps: Tensor
    cells: tuple[Tensor, ...]

    @property
    def counts(self) -> Tensor:
        """How many vectors each episode has, (B,) int64; at least one."""
        return torch.stack([c.sum(dim=(1, 2, 3), dtype=torch.int64) for c in self.cells]).sum(0)


def local_vectors(
    maps: Tensor, regions: Tensor, *, enlarge: int, full_size: tuple[int, int]
) -> LocalVectors:
    """The local vectors of maps under masks, as published.

    A mask is brought to `enlarge` times the map's size ("nearest"). One that keeps no more than ten
    cells there is read at full size instead, and an empty one gives a zero vector.

    Whether there is such a mask is asked of the device, once: reading every map at full size as
    well would cost more than all the rest.

    Args:
        maps: (B, M, C, h, w).
        regions: (B, M, H, W) of {0, 1}, of any size.
        enlarge: how many times the map is enlarged for them.
        full_size: the size at which small masks are read; that of the images.
    """
    regions = regions.float()
    size = (enlarge * maps.shape[3], enlarge * maps.shape[4])
    cells = _nearest(regions, size)
    small = cells.sum(dim=(2, 3), keepdim=True) <= _FEW
    if not bool(small.any()):
        return LocalVectors(maps, (cells,))
    full = _nearest(regions, full_size) * small
    # A zero vector is the first cell of a map of zeros.
    empty = full.sum(dim=(2, 3), keepdim=True).eq(0) & small
    full[:, :, :1, :1] += empty
    return LocalVectors(maps * ~empty.unsqueeze(2), (cells * ~small, full))


def episode_vectors(
    features: Sequence[Tensor], regions: Sequence[Tensor], config: PartConfig
) -> list[LocalVectors]:
    """The local vectors of background and ways: of the background those of all ways together.

    Args:
        features: of each way, (B, K, C, h, w); ways may differ in their number of shots.
        regions: of each way, (B, K, 2, H, W): foreground and background.
        config: how much the maps are enlarged.
    """
    full_size = (regions[0].shape[3], regions[0].shape[4])
    background = local_vectors(
        _joined(features),
        _joined([one[:, :, 1] for one in regions]),
        enlarge=config.background_enlarge,
        full_size=full_size,
    )
    ways = [
        local_vectors(maps, masks[:, :, 0], enlarge=config.foreground_enlarge, full_size=full_size)
        for maps, masks in zip(features, regions, strict=True)
    ]
    return [background, *ways]


def class_centres(classes: Sequence[LocalVectors], starts: Tensor, config: PartConfig) -> Tensor:
    """The k-means centres of each class, (B, N, G, C).

    Args:
        classes: N local vectors, of B episodes each.
        starts: where the centres start, (B, N, G) or (N, G): int64, indices of local vectors; or
            floating point, fractions of their number in [0, 1).
        config: rounds, and what an empty cluster is.

    Raises:
        ValueError: if `starts` are of another shape or not indices of local vectors.
    """
    batch = classes[0].maps.shape[0]
    if starts.shape[:-1] not in ((batch, len(classes)), (len(classes),)):
        wanted = f"({batch}, {len(classes)}, G) or ({len(classes)}, G)"
        raise expected("starts", wanted, str(tuple(starts.shape)))
    starts = starts.to(classes[0].maps.device).expand(batch, -1, -1)
    # Classes differ in their number of maps and in how much those are enlarged.
    centres = [
        part_centres(
            one, _indices(starts[:, number], one), rounds=config.rounds, empty=config.empty
        )
        for number, one in enumerate(classes)
    ]
    return torch.stack(centres, dim=1)


def _indices(starts: Tensor, vectors: LocalVectors) -> Tensor:
    counts = vectors.counts.unsqueeze(1)
    if starts.is_floating_point():
        return torch.minimum((starts * counts).long(), counts - 1)
    if bool(((starts < 0) | (starts >= counts)).any()):  # the caller's own; they are rare
        wanted = f"indices of {counts.flatten().tolist()} local vectors"
        raise expected("starts", wanted, str(starts.tolist()))
    return starts


def _joined(shots: Sequence[Tensor]) -> Tensor:
    """The shots of all ways; not copied for one way."""
    return shots[0] if len(shots) == 1 else torch.cat(list(shots), dim=1)


def part_centres(
    vectors: LocalVectors, starts: Tensor, *, rounds: int, empty: EmptyCluster = "zero"
) -> Tensor:
    """k-means centres (B, G, C): means of the vectors that the last round assigns to each.

    Centres move without gradient; the last means have one with regard to the maps.

    Args:
        vectors: as of `local_vectors`.
        starts: (B, G) int64, the vectors that the centres start at; repeated ones are empty in the
            first round, but for the first of them.
        rounds: of assigning the vectors to the nearest centre; of equal ones to the first.
        empty: what a centre is that the last round assigns nothing to: "zero" as published, or
            "previous", where it was.
    """
    with torch.no_grad():
        # Centres move in float32 at least: bfloat16 would move vectors between clusters.
        maps = vectors.maps.to(torch.promote_types(vectors.maps.dtype, torch.float32))
        still = LocalVectors(maps, vectors.cells)
        members = _at(still, starts)
        centres, _ = _means(still, members)
        # Equal starts are equal bit by bit.
        first = (starts.unsqueeze(2) == starts.unsqueeze(1)).int().argmax(dim=2)
        centres = centres.gather(1, first.unsqueeze(2).expand_as(centres))
        for turn in range(rounds):
            before, members = members, _assign(still, centres)
            # Nothing moves any more; only asked where the answer costs no wait.
            if maps.device.type == "cpu" and turn > 0 and _equal(before, members):
                break
            if turn < rounds - 1:
                means, counts = _means(still, members)
                centres = torch.where(counts.unsqueeze(2) > 0, means, centres)
    means, counts = _means(vectors, members)
    if empty == "previous":
        means = torch.where(counts.unsqueeze(2) > 0, means, centres.to(means.dtype))
    return means


# ---- members: of each size of cells, (B, M, G, H', W') of {0, 1}, the vectors of each cluster


def _at(vectors: LocalVectors, indices: Tensor) -> list[Tensor]:
    """Clusters of one vector each, by indices (B, G)."""
    flat = [cells.flatten(2) for cells in vectors.cells]
    together = torch.cat(flat, dim=2).flatten(1)  # (B, M * cells)
    places = torch.searchsorted(together.long().cumsum(1), indices + 1)
    shape = (*indices.shape, together.shape[1])
    chosen = torch.zeros(shape, device=together.device).scatter_(2, places.unsqueeze(2), 1)
    chosen = chosen.unflatten(2, (flat[0].shape[1], -1)).transpose(1, 2)  # (B, M, G, cells)
    parts = chosen.split([one.shape[2] for one in flat], dim=3)
    return [p.unflatten(3, c.shape[2:]) for p, c in zip(parts, vectors.cells, strict=True)]


def _assign(vectors: LocalVectors, centres: Tensor) -> list[Tensor]:
    """Every vector to the nearest of centres (B, G, C)."""
    # Measured from their middle m, where the dot products are smaller and so is their rounding:
    # <x, c> - |c|^2 / 2 = <x, c - m> - <c - m, c + m> / 2, and something that is alike for all c.
    middle = centres.mean(dim=1, keepdim=True)
    offsets = centres - middle
    threshold = (offsets * (centres + middle)).sum(dim=2) / 2
    # A centre that equals an earlier one gets nothing, whatever the rounding.
    same = (centres.unsqueeze(2) == centres.unsqueeze(1)).all(dim=3)
    repeated = same.tril(diagonal=-1).any(dim=2)
    threshold = threshold.masked_fill(repeated, torch.inf)
    maps = vectors.maps
    dots = torch.matmul(offsets.unsqueeze(1), maps.flatten(3)).unflatten(3, maps.shape[3:])
    members = []
    for cells in vectors.cells:
        enlarged = _resized(dots, (cells.shape[2], cells.shape[3]))
        best = (enlarged - threshold[:, None, :, None, None]).argmax(dim=2, keepdim=True)
        members.append(torch.zeros_like(enlarged).scatter_(2, best, cells.unsqueeze(2).to(dots)))
    return members


def _means(vectors: LocalVectors, members: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Means (B, G, C) of the clusters, zero for empty ones, and their counts (B, G)."""
    batch, maps = vectors.maps.shape[:2]
    sums: list[Tensor] = []
    counts: list[Tensor] = []
    for of_size in members:
        count = of_size.sum(dim=(3, 4))
        means = masked_average_pool(
            vectors.maps.flatten(0, 1),
            of_size.flatten(0, 1),
            resize="features",
            align_corners=True,
            eps=0.0,
        )
        sums.append((means.unflatten(0, (batch, maps)) * count.unsqueeze(3)).sum(dim=1))
        counts.append(count.sum(dim=1))
    total = torch.stack(counts).sum(dim=0)
    mean = torch.stack(sums).sum(dim=0) / total.clamp_min(1).unsqueeze(2)
    return mean.to(vectors.maps.dtype), total


def _equal(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def _resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, M, G, h, w) -> (B, M, G, *size), bilinear with align_corners=True."""
    if maps.shape[3:] == size:
        return maps
    large = F.interpolate(maps.flatten(0, 1), size, mode="bilinear", align_corners=True)
    return large.view(*maps.shape[:2], *large.shape[1:])


def _nearest(regions: Tensor, size: tuple[int, int]) -> Tensor:
    return regions if regions.shape[2:] == size else F.interpolate(regions, size, mode="nearest")
