"""PPNet's head as published: the yardstick for speed and memory, and an oracle.

Slow on purpose: each support's map enlarged to the mask's size twice, once a global vector, and
again where few cells are left; lists of local vectors; their differences with every centre; loops
over episodes, ways, shots, clusters, superpixels and prototypes.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor


def large(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(C, h, w) -> (C, *size)."""
    return F.interpolate(maps[None], size=size, mode="bilinear", align_corners=True)[0]


def nearest(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """(H, W) -> size."""
    return F.interpolate(mask[None, None].float(), size=size, mode="nearest")[0, 0]


def published_vector(features: Tensor, mask: Tensor) -> Tensor:
    """The global vector (C,) of a map (C, h, w) under a mask (H, W)."""
    enlarged = large(features, mask.shape)
    return torch.sum(enlarged * mask[None], dim=(1, 2)) / (mask.sum() + 1e-5)


def published_local(
    features: Tensor, mask: Tensor, enlarge: int, full_size: tuple[int, int]
) -> Tensor:
    """The local vectors (N, C) of a map (C, h, w) under a mask."""
    size = (enlarge * features.shape[1], enlarge * features.shape[2])
    cells = nearest(mask, size)
    if cells.sum() > 10:
        return large(features, size)[:, cells > 0].T
    if mask.sum() == 0:
        return features.new_zeros(1, len(features))
    return large(features, full_size)[:, nearest(mask, full_size) > 0].T


def published_kmeans(vectors: Tensor, starts: Tensor, rounds: int, empty: str = "zero") -> Tensor:
    """Centres (G, C) of vectors (N, C) from start indices (G,)."""
    fixed = vectors.detach()
    centres = fixed[starts].clone()
    for turn in range(rounds):
        distances = ((fixed[:, None] - centres[None]) ** 2).sum(dim=2)
        # Equal centres tie, and the lowest wins: torch's sums of equal rows may differ by rounding.
        for later in range(1, len(centres)):
            for earlier in range(later):
                if torch.equal(centres[later], centres[earlier]):
                    distances[:, later] = distances[:, earlier]
        nearest_one = distances.argmin(dim=1)
        if turn == rounds - 1:
            break
        for number in range(len(starts)):
            chosen = torch.nonzero(nearest_one == number)[:, 0]
            if len(chosen):
                centres[number] = torch.index_select(fixed, 0, chosen).mean(dim=0)
    found = []
    for number in range(len(starts)):
        chosen = torch.nonzero(nearest_one == number)[:, 0]
        if len(chosen):
            found.append(torch.index_select(vectors, 0, chosen).mean(dim=0))
        else:
            found.append(centres[number] if empty == "previous" else torch.zeros_like(centres[0]))
    return torch.stack(found)


def published_prototypes(
    supports: Tensor,  # (W, K, C, h, w), one episode
    foregrounds: Tensor,  # (W, K, H, W), 0/1 floats
    backgrounds: Tensor,
    starts: Iterator[Tensor],  # (G,) a call: the ways', then the background's
    *,
    alpha: float = 0.8,
    rounds: int = 10,
    empty: str = "zero",
) -> tuple[list[Tensor], list[Tensor]]:
    """Prototypes (G, C) and global vectors (C,), background first."""
    ways, shots = supports.shape[:2]
    full_size = foregrounds.shape[-2:]
    prototypes, vectors, far = [], [], []
    background = supports.new_zeros(supports.shape[2])
    for way in range(ways):
        near, mean = [], supports.new_zeros(supports.shape[2])
        for shot in range(shots):
            features = supports[way, shot]
            front, back = foregrounds[way, shot], backgrounds[way, shot]
            mean = mean + published_vector(features, front) / shots
            background = background + published_vector(features, back) / shots / ways
            near.append(published_local(features, front, 2, full_size))
            far.append(published_local(features, back, 1, full_size))
        centres = published_kmeans(torch.cat(near), next(starts), rounds, empty)
        prototypes.append(centres + alpha * mean)
        vectors.append(mean)
    centres = published_kmeans(torch.cat(far), next(starts), rounds, empty)
    return [centres + alpha * background, *prototypes], [background, *vectors]


def published_scores(features: Tensor, prototypes: list[Tensor]) -> Tensor:
    """(1 + W, h, w) of (C, h, w): the best of each class's prototypes."""
    scores = [
        torch.stack(
            [F.cosine_similarity(features, p[:, None, None], dim=0) * 20 for p in of_class]
        ).amax(dim=0)
        for of_class in prototypes
    ]
    return torch.stack(scores)


def published_alignment(
    features: Tensor,  # (C, h, w)
    scores: Tensor,  # (1 + W, h, w)
    supports: Tensor,  # (W, K, C, h, w)
    foregrounds: Tensor,  # (W, K, H, W)
    backgrounds: Tensor,
    starts: Iterator[Tensor],  # (G,) a call: the background's, then those of the ways predicted
    *,
    alpha: float = 0.8,
    rounds: int = 10,
    average: str = "shot",
) -> Tensor:
    """The alignment loss of one episode."""
    ways, shots = supports.shape[:2]
    size = foregrounds.shape[-2:]
    predicted = scores.argmax(dim=0)
    prototypes = {}
    for number in range(1 + ways):
        mask = (predicted == number).to(features)
        if number > 0 and mask.sum() == 0:
            continue
        vector = (features * mask).sum(dim=(1, 2)) / (mask.sum() + 1e-5)
        local = published_local(features, mask, 2, size)
        prototypes[number] = published_kmeans(local, next(starts), rounds) + alpha * vector
    loss = features.new_zeros(())
    for way in range(ways):
        if way + 1 not in prototypes:
            continue
        pair = [prototypes[0], prototypes[way + 1]]
        logits, targets = [], []
        for shot in range(shots):
            logits.append(large(published_scores(supports[way, shot], pair), size))
            target = torch.full(size, 255, dtype=torch.long)
            target[foregrounds[way, shot] == 1] = 1
            target[backgrounds[way, shot] == 1] = 0
            targets.append(target)
        if average == "way":
            entropy = F.cross_entropy(torch.stack(logits), torch.stack(targets), ignore_index=255)
            loss = loss + entropy / shots / ways
            continue
        for one, target in zip(logits, targets, strict=True):
            entropy = F.cross_entropy(one[None], target[None], ignore_index=255)
            loss = loss + entropy / shots / ways
    return loss


def published_graph(
    prototypes: list[Tensor],  # (G, C)
    vectors: list[Tensor],  # (C,)
    features: Tensor,  # (U, C, h, w)
    segments: Tensor,  # (U, H, W)
    matrices: dict[str, Tensor],  # by their published names
    *,
    topk: int,
    threshold: float,
    group: int,
    blend: float,
) -> list[Tensor]:
    """The refined prototypes."""
    inner, trans = matrices["inner_w1.weight"], matrices["inner_trans.weight"]
    of_candidates, of_prototypes = matrices["inter_w1.weight"], matrices["inter_w2.weight"]
    root = len(inner) ** 0.5
    means = []
    for image, numbers in zip(features, segments, strict=True):
        small = nearest(numbers, image.shape[-2:]).long()
        means.append(torch.stack([image[:, small == n].mean(dim=1) for n in small.unique()]))
    candidates: list[list[Tensor]] = []
    for vector in vectors:
        lists = []
        for of_image in means:
            cosines = F.cosine_similarity(of_image, vector[None], dim=1)
            best, at = cosines.topk(min(topk, len(cosines)))
            chosen = of_image[at[best > threshold]]
            if len(chosen) > 1:
                keys = chosen @ inner.T
                attention = (keys @ keys.T / root).softmax(dim=1)
                chosen = chosen + F.relu(attention @ chosen @ trans.T)
            lists.append(chosen)
        candidates.append(lists)
    for start in range(0, len(means), group):
        refined = []
        for of_class, lists in zip(prototypes, candidates, strict=True):
            together = torch.cat(lists[start : start + group])
            read = torch.zeros_like(of_class)
            if len(together):
                query, keys = of_class @ of_prototypes.T, together @ of_candidates.T
                read = (query @ keys.T / root).softmax(dim=1) @ together
            refined.append(blend * of_class + (1 - blend) * read)
        prototypes = refined
    return prototypes
