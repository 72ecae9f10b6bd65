"""PPNet behind the encoder, against the published form: parts, alignment, graph."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from fastfss import PPNet, create_encoder
from fastfss.methods import GraphConfig, PartConfig
from fastfss.methods.latent_graph import LatentGraph, segment_means
from fastfss.methods.parts import LocalVectors, episode_vectors, local_vectors, part_centres
from tests.methods.published_ppnet import (
    nearest,
    published_alignment,
    published_graph,
    published_kmeans,
    published_local,
    published_prototypes,
    published_scores,
)
from tests.tolerances import assert_close

B, W, K, C = 2, 2, 3, 7
GRID, SIZE = (9, 6), (65, 43)


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def model(variant: str = "part", **options: object) -> PPNet:
    encoder = create_encoder("resnet18", last="layer1")
    return PPNet(encoder, layers=("layer1",), variant=variant, **options).eval()  # type: ignore[arg-type]


def masks(ways: int = W, shots: int = K) -> Tensor:
    """(B, W, K, H, W) 0/1: blobs of many sizes, one with few cells and one that is empty."""
    height, width = SIZE
    found = torch.zeros(B, ways, shots, height, width, dtype=torch.float64)
    for item in range(B):
        for way in range(ways):
            for shot in range(shots):
                top, left = 3 + 11 * shot + 2 * item, 2 + 5 * way
                found[item, way, shot, top : top + 20, left : left + 17] = 1
    found[0, 0, 0] = 0
    found[0, 0, 0, 30:41, 20:29] = 1  # nine cells
    found[1, ways - 1, 0] = 0
    return found


def numbered_starts(seed: int = 0, count: int = 5) -> Tensor:
    """Fractions (B, 1 + W, G)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(B, 1 + W, count, generator=generator, dtype=torch.float64)


def published_starts(
    segmenter: PPNet, features: Tensor, regions: Tensor, fractions: Tensor, item: int
) -> Iterator[Tensor]:
    """Of one episode, as indices, in the order of the published calls."""
    classes = episode_vectors(features.unbind(1), regions.unbind(1), segmenter.parts)
    indices = [
        (fractions[item, number] * int(one.counts[item])).long()
        for number, one in enumerate(classes)
    ]
    return iter([*indices[1:], indices[0]])


def ways_of(segmenter: PPNet, features: Tensor, regions: Tensor) -> list[dict[str, Tensor]]:
    leading = features.shape[:3]
    vectors = segmenter.pool(features.flatten(0, 2), regions.flatten(0, 2)).unflatten(0, leading)
    return [
        {"features": features[:, w], "regions": regions[:, w], "vectors": vectors[:, w]}
        for w in range(leading[1])
    ]


@pytest.mark.parametrize("empty", ["zero", "previous"])
def test_prototypes_and_their_gradient_equal_the_published_form(empty: str) -> None:
    segmenter = model(parts=PartConfig(empty=empty))  # type: ignore[arg-type]
    features = drawn(B, W, K, C, *GRID).requires_grad_()
    foregrounds = masks()
    regions = torch.stack([foregrounds == 1, foregrounds != 1], dim=3)
    # Half of the positions are one and the same vector, so that clusters stay empty.
    with torch.no_grad():
        features[..., ::2] = features[..., :1, :1]
    fractions = numbered_starts()
    found, _ = segmenter.make_prototypes(ways_of(segmenter, features, regions), None, fractions)
    expected = []
    for item in range(B):
        starts = published_starts(segmenter, features, regions, fractions, item)
        prototypes, _ = published_prototypes(
            *(features[item], foregrounds[item], 1 - foregrounds[item], starts), empty=empty
        )
        expected.append(torch.stack(prototypes))
    assert_close(found, torch.stack(expected))
    weights = drawn(*found.shape, seed=1)
    gradients = [
        torch.autograd.grad((one * weights).sum(), features)[0]
        for one in (found, torch.stack(expected))
    ]
    assert gradients[1].abs().max() > 0
    assert_close(gradients[0], gradients[1], dtype=torch.float64)
    query = drawn(B, C, *GRID, seed=2)
    scores = segmenter.scores(query, found)
    for item in range(B):
        assert_close(scores[item], published_scores(query[item], list(expected[item])))


@pytest.mark.parametrize(
    ("pixels", "cells"), [((0, 0), 0), ((1, 2), 0), ((10, 10), 9), ((19, 8), 10), ((40, 4), 11)]
)
def test_few_cells_are_read_at_full_size_and_an_empty_mask_is_a_zero_vector(
    pixels: tuple[int, int], cells: int
) -> None:
    """The map's grid, enlarged: 18 by 12 cells for 65 by 43 pixels."""
    maps, region = drawn(1, 1, C, *GRID), torch.zeros(1, 1, *SIZE)
    region[..., 12 : 12 + pixels[0], 8 : 8 + pixels[1]] = 1
    assert nearest(region[0, 0], (18, 12)).sum() == cells
    vectors = local_vectors(maps, region, enlarge=2, full_size=SIZE)
    expected = published_local(maps[0, 0], region[0, 0], 2, SIZE)
    count = cells if cells > 10 else max(1, pixels[0] * pixels[1])
    assert vectors.counts.tolist() == [len(expected)] == [count]
    assert len(vectors.cells) == (1 if cells > 10 else 2)
    if pixels[0] == 0:
        assert expected.tolist() == [[0.0] * C]
    starts = torch.arange(5).remainder(len(expected)).unsqueeze(0)
    found = part_centres(vectors, starts, rounds=10)
    assert_close(found[0], published_kmeans(expected, starts[0], 10))


@pytest.mark.parametrize("rounds", [1, 2, 20])
@pytest.mark.parametrize(
    "starts", [(0, 0, 3, 3, 3), (5, 4, 3, 2, 1), (7, 7, 7, 7, 7)], ids=["pairs", "apart", "one"]
)
def test_repeated_starts_go_to_the_first_and_the_others_are_empty(
    starts: tuple[int, ...], rounds: int
) -> None:
    maps, cells = drawn(1, 1, C, *GRID), torch.zeros(1, 1, *GRID)
    cells[..., 2:7, 1:4] = 1
    indices = torch.tensor([starts])
    vectors = LocalVectors(maps, (cells,))
    listed = maps[0, 0][:, cells[0, 0] > 0].T
    for empty in ("zero", "previous"):
        found = part_centres(vectors, indices, rounds=rounds, empty=empty)  # type: ignore[arg-type]
        assert_close(found[0], published_kmeans(listed, indices[0], rounds, empty))
    if len(set(starts)) == 1:
        zero = part_centres(vectors, indices, rounds=1)[0]
        assert_close(zero[0], listed.mean(dim=0))
        assert zero[1:].abs().max() == 0
        kept = part_centres(vectors, indices, rounds=1, empty="previous")[0]
        assert_close(kept[1:], listed[7].expand(4, -1))


def test_equal_vectors_at_different_places_are_one_cluster() -> None:
    """Ties go to the lowest centre, whatever the rounding: float32, far from the origin."""
    maps = torch.ones(1, 1, C, *GRID) * 0.1 + 1000
    vectors = LocalVectors(maps, (torch.ones(1, 1, *GRID),))
    found = part_centres(vectors, torch.tensor([[3, 20, 41]]), rounds=5)
    assert_close(found[0, 0], maps[0, 0, :, 0, 0])
    assert found[0, 1:].abs().max() == 0


@pytest.mark.parametrize("average", ["shot", "way"])
def test_the_alignment_loss_and_its_gradient_equal_the_published_form(average: str) -> None:
    segmenter = model(alignment_average=average).train()
    features = drawn(B, W, K, C, *GRID).requires_grad_()
    query = drawn(B, C, *GRID, seed=1).requires_grad_()
    scores = drawn(B, 1 + W, *GRID, seed=2)
    scores[0, 2] = -100  # a way that is nowhere
    scores[1, 1] = -100  # a way with two positions, eight cells
    scores[1, 1, 4, 2:4] = 100
    foregrounds = masks()
    regions = torch.stack([foregrounds == 1, foregrounds != 1], dim=3)
    fractions = numbered_starts(seed=3)
    found, _ = segmenter.align(features, regions, query, scores, fractions)
    losses = []
    for item in range(B):
        predicted = scores[item].argmax(dim=0)
        calls = []
        for number in range(1 + W):
            local = published_local(query[item], (predicted == number).float(), 2, SIZE)
            if (predicted == number).any():
                calls.append((fractions[item, number] * len(local)).long())
        assert len(calls) == (2 if item == 0 else 3)
        losses.append(
            published_alignment(
                *(query[item], scores[item], features[item]),
                *(foregrounds[item], 1 - foregrounds[item], iter(calls)),
                average=average,
            )
        )
    expected = torch.stack(losses).mean()
    assert expected > 0
    assert_close(found, expected)
    gradients = [torch.autograd.grad(one, [features, query]) for one in (found, expected)]
    for ours, theirs in zip(*gradients, strict=True):
        assert_close(ours, theirs, dtype=torch.float64)


def test_a_query_without_predicted_background_has_a_zero_vector_there() -> None:
    segmenter = model().train()
    scores = drawn(B, 1 + W, *GRID, seed=2)
    scores[:, 0] = -100
    features, query = drawn(B, W, K, C, *GRID), drawn(B, C, *GRID, seed=1)
    regions = torch.stack([masks() == 1, masks() != 1], dim=3)
    loss, centres = segmenter.align(features, regions, query, scores)
    assert centres is not None
    assert centres[:, 0].abs().max() == 0
    assert loss.isfinite()


GRAPHS = {
    "published": GraphConfig(topk=30, threshold=0.0, group=2),
    "five shots": GraphConfig(topk=5, threshold=0.2, group=6, blend=0.9),
    "some lack candidates": GraphConfig(topk=4, threshold=0.45, group=3, blend=0.5),
    "none has candidates": GraphConfig(topk=4, threshold=0.999, group=2),
    "one candidate each": GraphConfig(topk=1, threshold=-1.0, group=1),
}


@pytest.mark.parametrize("config", GRAPHS.values(), ids=GRAPHS.keys())
def test_the_graph_and_its_gradient_equal_the_published_form(config: GraphConfig) -> None:
    """Three classes, five images, superpixels that vanish at the map's size, and odd numbers."""
    channels, images = 12, 5
    torch.manual_seed(0)
    graph = LatentGraph(channels).double()
    prototypes = drawn(B, 3, 5, channels).requires_grad_()
    vectors = drawn(B, 3, channels, seed=1)
    features = drawn(B, images, channels, *GRID, seed=2)
    generator = torch.Generator().manual_seed(3)
    coarse = torch.randint(0, 9, (B, images, 8, 6), generator=generator)
    segments = 1000 * coarse.repeat_interleave(8, dim=2).repeat_interleave(7, dim=3) + 7
    segments[..., 0, 1] = 3  # one pixel, which "nearest" leaves out
    unlabelled = segment_means(features, segments)
    refined, attended = graph(prototypes, vectors, unlabelled, config)
    assert len(attended) == -(-images // config.group)
    expected = torch.stack(
        [
            torch.stack(
                published_graph(
                    list(prototypes[item]),
                    list(vectors[item]),
                    *(features[item], segments[item], dict(graph.named_parameters())),
                    topk=config.topk,
                    threshold=config.threshold,
                    group=config.group,
                    blend=config.blend,
                )
            )
            for item in range(B)
        ]
    )
    assert_close(refined, expected)
    leaves = [prototypes, *graph.parameters()]
    gradients = [
        torch.autograd.grad(one.square().sum(), leaves, allow_unused=True, materialize_grads=True)
        for one in (refined, expected)
    ]
    for ours, theirs in zip(*gradients, strict=True):
        assert ours.isfinite().all()
        assert_close(ours, theirs, dtype=torch.float64)


def test_a_segment_is_the_mean_of_its_cells_and_absent_ones_are_marked() -> None:
    features = drawn(1, 2, C, 2, 3)
    segments = torch.tensor([[[4, 4, 9], [4, 9, 9]], [[2, 2, 2], [2, 2, 2]]]).unsqueeze(0)
    found = segment_means(features, segments)
    assert found.present.tolist() == [[[False, True, True], [True, False, False]]]
    assert_close(found.features[0, 0, 1], features[0, 0, :, [0, 0, 1], [0, 1, 0]].mean(dim=1))
    assert_close(found.features[0, 1, 0], features[0, 1].mean(dim=(1, 2)))
    assert found.features[0, 1, 1:].abs().max() == 0
