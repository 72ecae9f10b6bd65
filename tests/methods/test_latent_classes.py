"""Latent classes: the clustering, the centroids and the pseudo masks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastfss.methods.latent_classes import (
    LatentClasses,
    LatentDecoder,
    MiningConfig,
    enlarge_labels,
    label_prototypes,
    mine_latent_classes,
    spherical_kmeans,
)
from tests.published import panet_masked_average_pool
from tests.tolerances import assert_close


def directions(groups: int, members: int, *, channels: int = 16, noise: float = 0.1) -> Tensor:
    """(groups * members, channels): groups of vectors that point nearly the same way."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.linalg.qr(torch.randn(channels, channels, generator=generator))[0][:groups]
    spread = noise * torch.randn(groups, members, channels, generator=generator)
    lengths = 0.5 + torch.rand(groups, members, 1, generator=generator)
    return (lengths * (centres[:, None] + spread)).flatten(0, 1)


def samples(count: int = 4, *, classes: int = 3, size: int = 24) -> list[tuple[Tensor, Tensor]]:
    """Feature maps with label maps: vertical stripes of all classes, background, ignored pixels."""
    generator = torch.Generator().manual_seed(1)
    looks = torch.randn(classes + 1, 8, generator=generator)
    found = []
    for _ in range(count):
        labels = torch.arange(size).div(size / (classes + 1)).long().expand(1, size, size).clone()
        labels[:, 0] = 255
        grid = labels[:, ::4, ::4].clamp_max(classes)
        noise = 0.2 * torch.randn(1, 8, *grid.shape[1:], generator=generator)
        found.append((looks[grid].permute(0, 3, 1, 2) + noise, labels))
    return found


# ---- clustering


def test_separate_groups_are_found() -> None:
    centroids, assigned = spherical_kmeans(directions(5, 12), 5)
    groups = assigned.view(5, 12)
    assert (groups == groups[:, :1]).all()
    assert len(groups[:, 0].unique()) == 5
    assert_close(centroids.norm(dim=1), torch.ones(5))
    means = F.normalize(directions(5, 12), dim=1).view(5, 12, -1).mean(dim=1)
    assert_close(centroids[groups[:, 0]], F.normalize(means, dim=1))


def test_lengths_do_not_matter() -> None:
    vectors = directions(4, 9, noise=0.4)
    lengths = 1 + torch.arange(36.0)[:, None]
    assert torch.equal(spherical_kmeans(vectors, 4)[1], spherical_kmeans(vectors * lengths, 4)[1])


def test_a_seed_gives_the_same_clusters_and_leaves_the_global_generator_alone() -> None:
    vectors = torch.randn(200, 16, generator=torch.Generator().manual_seed(2))
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first, second = (spherical_kmeans(vectors, 20, seed=3) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[1], spherical_kmeans(vectors, 20, seed=4)[1])


def test_more_iterations_never_lower_the_similarity() -> None:
    vectors = torch.randn(300, 8, generator=torch.Generator().manual_seed(5))
    units = F.normalize(vectors, dim=1)
    fits = []
    for iterations in (1, 3, 10, 100):
        centroids, assigned = spherical_kmeans(vectors, 12, iterations=iterations)
        fits.append(float((units * centroids[assigned]).sum(dim=1).mean()))
    assert fits == sorted(fits)
    assert fits[0] < fits[-1]


def test_the_result_is_stable() -> None:
    """At convergence every vector is with its most similar centroid."""
    vectors = torch.randn(300, 8, generator=torch.Generator().manual_seed(5))
    centroids, assigned = spherical_kmeans(vectors, 12)
    assert torch.equal((F.normalize(vectors, dim=1) @ centroids.T).argmax(dim=1), assigned)


@pytest.mark.parametrize(
    "vectors",
    [torch.ones(7, 4), torch.eye(4).repeat(2, 1)[:7], torch.randn(7, 4)],
    ids=["all equal", "fewer directions than clusters", "as many as clusters"],
)
def test_no_cluster_stays_empty(vectors: Tensor) -> None:
    centroids, assigned = spherical_kmeans(vectors, 7)
    assert assigned.bincount(minlength=7).tolist() == [1] * 7
    assert_close(centroids.norm(dim=1), torch.ones(7))


@pytest.mark.parametrize("shape", [(3, 4), (8,)], ids=["too few", "rank"])
def test_wrong_vectors_are_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"vectors: expected \(N, C\) with N >= clusters, 5"):
        spherical_kmeans(torch.randn(shape), 5)


# ---- centroids


def test_prototypes_are_the_published_masked_averages() -> None:
    features, labels = samples(1)[0]
    prototypes, present = label_prototypes(features, labels, (1, 3, 9))
    for row, value in ((1, 1), (2, 3)):
        mask = (labels == value).float()
        assert_close(prototypes[:, row], panet_masked_average_pool(features, mask))
    # Label 2 is not among the classes, so it is background; 255 is neither.
    background = ((labels == 0) | (labels == 2)).float()
    assert_close(prototypes[:, 0], panet_masked_average_pool(features, background))
    assert present.tolist() == [[True, True, True, False]]


def test_centroids_are_the_clusters_of_objects_and_the_mean_background() -> None:
    config = MiningConfig(clusters=3)
    latent = mine_latent_classes(samples(), config=config)
    pooled = [label_prototypes(*sample, (1, 2, 3))[0][0] for sample in samples()]
    background = torch.stack([F.normalize(p[0], dim=0) for p in pooled]).mean(dim=0)
    assert_close(latent.centroids[0], F.normalize(background, dim=0))
    objects = torch.cat([p[1:] for p in pooled])
    assert_close(latent.centroids[1:], spherical_kmeans(objects, 3)[0])


def test_batches_are_mined_like_single_images() -> None:
    config = MiningConfig(clusters=3)
    features, labels = (torch.cat(parts) for parts in zip(*samples(), strict=True))
    together = mine_latent_classes([(features, labels)], classes=(1, 2, 3), config=config)
    apart = mine_latent_classes(samples(), classes=(1, 2, 3), config=config)
    assert_close(together.centroids, apart.centroids)


def test_hidden_classes_make_no_cluster() -> None:
    config = MiningConfig(clusters=4)
    with pytest.raises(ValueError, match="samples: expected at least as many objects as clusters"):
        mine_latent_classes(samples(3), classes=(2,), config=config)
    hidden = mine_latent_classes(samples(4), classes=(2,), config=config)
    relabelled = [(f, torch.where(m.eq(2) | m.eq(255), m, 0)) for f, m in samples(4)]
    assert_close(hidden.centroids, mine_latent_classes(relabelled, config=config).centroids)


def test_images_without_background_are_refused() -> None:
    whole = [(features, labels.clamp_min(1)) for features, labels in samples()]
    with pytest.raises(ValueError, match="samples: expected background in at least one image"):
        mine_latent_classes(whole, config=MiningConfig(clusters=2))


# ---- pseudo masks


def plain_pseudo_mask(features: Tensor, centroids: Tensor, size: tuple[int, int]) -> Tensor:
    """One position at a time: the centroid with the largest cosine; nearest by corner geometry."""
    _, height, width = features.shape
    mask = torch.zeros(size, dtype=torch.uint8)
    for y in range(size[0]):
        for x in range(size[1]):
            row = round(y * (height - 1) / max(size[0] - 1, 1))
            column = round(x * (width - 1) / max(size[1] - 1, 1))
            cosines = F.cosine_similarity(features[:, row, column][None], centroids)
            mask[y, x] = int(cosines.argmax())
    return mask


def random_latent(clusters: int = 6, **options: object) -> LatentClasses:
    generator = torch.Generator().manual_seed(7)
    centroids = F.normalize(torch.randn(clusters + 1, 8, generator=generator), dim=1)
    return LatentClasses(centroids, None, MiningConfig(clusters, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [(5, 7), (16, 13), (24, 33), (1, 1)])
def test_pseudo_masks_equal_the_plain_form(size: tuple[int, int]) -> None:
    features = torch.randn(2, 8, 5, 7, generator=torch.Generator().manual_seed(8))
    latent = random_latent()
    masks = latent.annotate(features, size=size)
    assert masks.dtype == torch.uint8
    for mask, one in zip(masks, features, strict=True):
        assert torch.equal(mask, plain_pseudo_mask(one, latent.centroids, size))


def test_labels_are_enlarged_with_their_corners_together() -> None:
    labels = torch.tensor([[[1, 2, 3]]])
    assert enlarge_labels(labels, (1, 9))[0, 0].tolist() == [1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_bilinear_upsampling_enlarges_the_scores_first() -> None:
    features = torch.randn(1, 8, 5, 7, generator=torch.Generator().manual_seed(8))
    latent = random_latent(upsampling="bilinear")
    cosines = torch.einsum("pc,bchw->bphw", latent.centroids, F.normalize(features, dim=1))
    large = F.interpolate(cosines, (24, 33), mode="bilinear", align_corners=True)
    masks = latent.annotate(features, size=(24, 33))
    assert (masks == large.argmax(dim=1)).float().mean() > 0.999
    assert not torch.equal(masks, random_latent().annotate(features, size=(24, 33)))


def test_unsure_positions_can_be_ignored() -> None:
    features = torch.randn(1, 8, 5, 7, generator=torch.Generator().manual_seed(8))
    latent, unsure = random_latent(), random_latent(min_similarity=0.5)
    cosines = torch.einsum("pc,bchw->bphw", latent.centroids, F.normalize(features, dim=1))
    wanted = latent.annotate(features).masked_fill(cosines.amax(dim=1) < 0.5, 255)
    assert torch.equal(unsure.annotate(features), wanted)
    assert 0 < (wanted == 255).sum() < wanted.numel()


def test_ignored_pixels_are_kept_or_labelled() -> None:
    features, labels = samples(1)[0]
    kept = random_latent().annotate(features, labels)
    assert torch.equal(kept == 255, labels == 255)
    assert torch.equal(
        random_latent(ignored_pixels="labelled").annotate(features, labels),
        random_latent().annotate(features, size=(24, 24)),
    )


def test_objects_are_labelled_ignored_or_get_their_prototypes_cluster() -> None:
    features, labels = samples(1)[0]
    objects = (labels > 0) & (labels < 255)
    labelled = random_latent().annotate(features, labels)
    ignored = random_latent(objects="ignored").annotate(features, labels)
    assert torch.equal(ignored, labelled.masked_fill(objects, 255))
    latent = random_latent(objects="prototype")
    own = latent.annotate(features, labels)
    assert torch.equal(own[~objects], labelled[~objects])
    for value in (1, 2, 3):
        prototype = panet_masked_average_pool(features, (labels == value).float())
        nearest = 1 + F.cosine_similarity(prototype, latent.centroids[1:]).argmax()
        assert (own[labels == value] == nearest).all()


def test_objects_outside_of_the_classes_are_treated_as_background() -> None:
    features, labels = samples(1)[0]
    chosen = LatentClasses(random_latent().centroids, (2,), MiningConfig(6, objects="ignored"))
    ignored = chosen.annotate(features, labels) == 255
    assert torch.equal(ignored, (labels == 2) | (labels == 255))


@pytest.mark.parametrize("objects", ["labelled", "prototype", "ignored"])
def test_an_image_without_objects_is_annotated_like_an_unlabelled_one(objects: str) -> None:
    features, labels = samples(1)[0]
    latent = random_latent(objects=objects)
    unlabelled = latent.annotate(features, size=(24, 24))
    assert torch.equal(latent.annotate(features, torch.zeros_like(labels)), unlabelled)


def test_wrong_maps_and_labels_are_named() -> None:
    latent = random_latent()
    with pytest.raises(ValueError, match=r"features: expected \(B, 8, h, w\), got \(1, 4, 5, 7\)"):
        latent.annotate(torch.randn(1, 4, 5, 7))
    features = torch.randn(1, 8, 5, 7)
    with pytest.raises(ValueError, match=r"labels: expected \(1, 10, 10\), got \(2, 10, 10\)"):
        latent.annotate(features, torch.zeros(2, 10, 10, dtype=torch.long))
    with pytest.raises(ValueError, match=r"labels: expected \(B, H, W\) with B = 1, got \(9, 9\)"):
        mine_latent_classes([(features, torch.zeros(9, 9, dtype=torch.long))])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MiningConfig(clusters=0), "clusters: expected 1 to 254, got 0"),
        (lambda: MiningConfig(clusters=255), "clusters: expected 1 to 254, got 255"),
        (lambda: MiningConfig(iterations=0), "iterations: expected at least 1"),
        (lambda: MiningConfig(min_similarity=2), "min_similarity: expected a cosine"),
        (lambda: MiningConfig(upsampling="cubic"), "upsampling: expected one of 'nearest'"),  # type: ignore[arg-type]
        (lambda: MiningConfig(objects="own"), "objects: expected one of 'labelled'"),  # type: ignore[arg-type]
        (lambda: MiningConfig(ignored_pixels="no"), "ignored_pixels: expected one of 'kept'"),  # type: ignore[arg-type]
    ],
    ids=["none", "many", "iterations", "similarity", "upsampling", "objects", "ignored"],
)
def test_wrong_options_are_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_the_decoder_is_a_convolution_a_norm_and_a_classifier() -> None:
    decoder = LatentDecoder(8, 7, width=16)
    assert decoder(torch.randn(2, 8, 5, 6)).shape == (2, 7, 5, 6)
    shapes = {name: tuple(p.shape) for name, p in decoder.named_parameters()}
    assert shapes == {
        "0.weight": (16, 8, 3, 3),
        "1.weight": (16,),
        "1.bias": (16,),
        "3.weight": (7, 16, 1, 1),
        "3.bias": (7,),
    }
