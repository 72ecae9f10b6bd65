from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import fastfss
from fastfss import PANet, PPNet, Task, create_encoder
from fastfss.methods import GraphConfig, PartConfig
from fastfss.methods.ppnet import PLAIN_KEYS, PPNET_KEYS
from tests.tolerances import assert_close

SIZE = (65, 49)


def model(variant: str = "part", encoder: str = "resnet18", layer: str = "layer2", **options):
    torch.manual_seed(0)
    layers = (layer,)
    return PPNet(create_encoder(encoder), layers=layers, variant=variant, **options).eval()


def episode(
    batch: int = 1, ways: int = 1, shots: int = 1, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Supports (B, W, K, 3, H, W), masks (B, W, K, H, W), queries (B, 3, H, W), their masks."""
    generator = torch.Generator().manual_seed(seed)
    height, width = SIZE
    images = torch.randn(batch, ways, shots, 3, height, width, generator=generator)
    masks = torch.zeros(batch, ways, shots, height, width)
    query = torch.randn(batch, 3, height, width, generator=generator)
    query_mask = torch.zeros(batch, height, width, dtype=torch.int64)
    for way in range(ways):
        colour = 3 * torch.randn(3, 1, 1, generator=generator)
        for item in range(batch):
            for shot in range(shots):
                top, left = 7 + 3 * item + 5 * shot, 4 + 6 * way
                masks[item, way, shot, top : top + 25, left : left + 20] = 1
            rows = slice(5 + 30 * way, 30 + 30 * way)
            query_mask[item, rows, 8:30] = way + 1
            query[item] += colour * (query_mask[item] == way + 1)
        images[:, way] += colour * masks[:, way].unsqueeze(2)
    return images, masks, query, query_mask


def tasks_of(segmenter: PPNet, images: Tensor, masks: Tensor) -> list[Task]:
    return [
        segmenter.encode_support(images[:, way], masks[:, way]) for way in range(images.shape[1])
    ]


def pool_of(segmenter: PPNet, batch: int = 1, count: int = 3) -> fastfss.methods.Unlabelled:
    generator = torch.Generator().manual_seed(9)
    images = torch.randn(batch, count, 3, *SIZE, generator=generator)
    segments = torch.arange(5 * 4).view(1, 1, 5, 4).expand(batch, count, -1, -1)
    return segmenter.encode_unlabelled(images, segments)


VARIANTS = ("plain", "part", "part_sem", "graph")


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_a_batch_gives_what_its_episodes_give_alone(variant: str) -> None:
    segmenter = model(variant, graph=GraphConfig(threshold=0.0))
    images, masks, query, _ = episode(batch=3, ways=2, shots=2)
    pool = pool_of(segmenter) if variant == "graph" else None
    tasks = tasks_of(segmenter, images, masks)
    together = segmenter.segment(query, tasks, unlabelled=pool).logits
    assert together.shape == (3, 3, *SIZE)
    for item in range(3):
        one = slice(item, item + 1)
        alone = segmenter.segment(
            query[one], tasks_of(segmenter, images[one], masks[one]), unlabelled=pool
        )
        assert_close(together[one], alone.logits)
        assert torch.equal(alone.margins, alone.logits[:, 1:] - alone.logits[:, :1])
    # The training forward in evaluation mode is the same.
    assert_close(segmenter(images, masks, query, unlabelled=pool).logits, together)


@torch.no_grad()
def test_one_task_serves_a_batch_of_queries_beside_a_batch_of_tasks() -> None:
    segmenter = model()
    images, masks, query, _ = episode(batch=2, ways=2)
    first, second = tasks_of(segmenter, images, masks)
    single = segmenter.encode_support(images[:1, 1], masks[:1, 1])
    mixed = segmenter.segment(query, [first, single]).logits
    assert_close(mixed[:1], segmenter.segment(query, [first, second]).logits[:1])
    twice = segmenter.segment(query[:1].expand(2, -1, -1, -1), single).logits
    assert_close(twice[1:], segmenter.segment(query[:1], single).logits)


@pytest.mark.parametrize("variant", ["plain", "part"])
@torch.no_grad()
def test_shots_fitted_apart_and_merged_equal_shots_fitted_together(variant: str) -> None:
    segmenter = model(variant)
    images, masks, query, _ = episode(shots=3)
    together = segmenter.encode_support(images[:, 0], masks[:, 0])
    apart = [
        segmenter.encode_support(images[:, 0, k : k + 1], masks[:, 0, k : k + 1]) for k in range(3)
    ]
    merged = apart[0].merge(*apart[1:])
    expected = segmenter.segment(query, together).logits
    assert_close(segmenter.segment(query, merged).logits, expected)
    one = segmenter.segment(query, together.select([1])).logits
    assert_close(one, segmenter.segment(query, apart[1]).logits)
    assert not torch.allclose(one, expected)


@torch.no_grad()
def test_ways_may_have_different_numbers_of_shots_and_their_order_does_not_matter() -> None:
    segmenter = model()
    images, masks, query, _ = episode(ways=2, shots=3)
    first, second = tasks_of(segmenter, images, masks)
    first = first.select([0])
    forth = segmenter.segment(query, [first, second]).logits
    foreground = segmenter.prototypes([first, second])[:, 1:]
    assert_close(foreground[:, :1], segmenter.prototypes([first])[:, 1:])
    assert_close(foreground[:, 1:], segmenter.prototypes([second])[:, 1:])
    back = segmenter.prototypes([second, first])
    assert_close(back[:, [2, 1]], foreground)
    assert forth.shape == (1, 3, *SIZE)


@torch.no_grad()
def test_the_variant_plain_is_panet() -> None:
    images, masks, query, query_mask = episode(batch=2, ways=2, shots=2)
    plain = model("plain", batch_statistics=False)
    panet = PANet(plain.encoder, layers=plain.layers).eval()
    expected = panet.segment(query, tasks_of(panet, images, masks)).logits  # type: ignore[arg-type]
    assert_close(plain.segment(query, tasks_of(plain, images, masks)).logits, expected)
    plain.train()
    panet.train()
    ours, theirs = plain(images, masks, query), panet(images, masks, query)
    assert_close(ours.alignment, theirs.alignment)
    losses = plain.loss(ours, query_mask)
    assert_close(losses["total"], panet.loss(theirs, query_mask)["total"])
    assert set(losses) == {"query", "alignment", "total"}


@torch.no_grad()
def test_options_do_what_they_say() -> None:
    images, masks, query, _ = episode()
    task = tasks_of(model(), images, masks)
    published = model().segment(query, task).logits
    assert model().parts == PartConfig(5, 0.8, 10, 2, 1, "zero")
    assert model("part_sem").parts.alpha == 0.5
    assert model("graph").parts.rounds == 20
    for options in (
        {"parts": PartConfig(alpha=0.3)},
        {"parts": PartConfig(parts=2)},
        {"parts": PartConfig(rounds=1)},
        {"parts": PartConfig(foreground_enlarge=1)},
        {"parts": PartConfig(background_enlarge=2)},
        {"seed": 1},
    ):
        assert not torch.allclose(model(**options).segment(query, task).logits, published), options
    assert torch.equal(model(seed=0).segment(query, task).logits, published)
    # One part that is all of the vectors, and nothing of the global vector.
    one = model(parts=PartConfig(parts=1, alpha=0.0))
    features, regions = task[0].tensors["features"][0, 0], task[0].tensors["regions"][0, 0, 1]
    cells = torch.nn.functional.interpolate(regions[None, None].float(), features.shape[1:])
    expected = features[:, cells[0, 0] > 0].mean(dim=1)
    assert_close(one.prototypes(task)[0, 0, 0], expected)


@torch.no_grad()
def test_starts_can_be_given_as_indices_or_fractions() -> None:
    segmenter = model(parts=PartConfig(rounds=2))
    images, masks, query, _ = episode(ways=2)
    tasks = tasks_of(segmenter, images, masks)
    fractions = segmenter.own_starts(3)
    assert_close(
        segmenter.segment(query, tasks, starts=fractions).logits,
        segmenter.segment(query, tasks).logits,
    )
    first = torch.zeros(1, 3, 5, dtype=torch.int64)
    alike = segmenter.prototypes(tasks, starts=first)
    # All start at one vector. The first moves away, the second takes in the last round what is near
    # its start, and the others stay empty: alpha times the global vector is all that they are.
    features, vectors = ([task.tensors[key] for task in tasks] for key in ("features", "vectors"))
    expected = segmenter.parts.alpha * segmenter.class_vectors(vectors).unsqueeze(2)
    assert_close(alike[:, :, 2:], expected.expand(-1, -1, 3, -1))
    keeping = model(parts=PartConfig(rounds=2, empty="previous")).prototypes(tasks, starts=first)
    assert_close(keeping[:, :, :2], alike[:, :, :2])
    start = features[0][:, 0, :, 0, 0]  # the first cell of the background
    assert_close(keeping[:, 0, 2:], expected[:, 0] + start.unsqueeze(1).expand(-1, 3, -1))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_training_step_reaches_what_is_trained_and_nothing_else(variant: str) -> None:
    segmenter = model(variant, layer="layer4", graph=GraphConfig(threshold=-1.0)).train()
    images, masks, query, query_mask = episode(batch=2, ways=2, shots=2)
    query_mask[:, :4] = 255
    pool = pool_of(segmenter, batch=2) if variant == "graph" else None
    before = {key: value.clone() for key, value in segmenter.encoder.named_buffers()}
    output = segmenter(images, masks, query, unlabelled=pool)
    labels = torch.randint(0, 16, masks.shape), torch.randint(0, 16, query_mask.shape)
    losses = segmenter.loss(output, query_mask, labels)
    expected = losses["query"] + losses["alignment"] + 0.1 * losses.get("semantic", 0)
    assert_close(losses["total"], expected)
    assert ("semantic" in losses) == (variant in ("part_sem", "graph"))
    losses["total"].backward()
    trained = {name for name, p in segmenter.named_parameters() if p.grad is not None}
    heads = {n for n, _ in segmenter.named_parameters() if n.startswith("aspp.")}
    late = ("encoder.layer3.", "encoder.layer4.")
    wanted = {n for n, _ in segmenter.named_parameters() if n.startswith(late)} | heads
    assert trained == wanted
    moved = {
        key for key, value in segmenter.encoder.named_buffers() if (value != before[key]).any()
    }
    assert {key.split(".")[0] for key in moved} == {"layer3", "layer4"}


def test_the_graph_can_be_trained_and_statistics_frozen() -> None:
    options = {"train_graph": True, "batch_statistics": False, "semantic_weight": 0.0}
    segmenter = model("graph", graph=GraphConfig(threshold=-1.0), **options).train()
    images, masks, query, query_mask = episode()
    before = {key: value.clone() for key, value in segmenter.encoder.named_buffers()}
    output = segmenter(images, masks, query, unlabelled=pool_of(segmenter))
    assert output.semantic is None
    segmenter.loss(output, query_mask)["total"].backward()
    assert all(p.grad.abs().max() > 0 for p in segmenter.latentGraph.parameters())
    assert all(p.grad is None for p in segmenter.aspp.parameters())
    assert all(torch.equal(v, before[key]) for key, v in segmenter.encoder.named_buffers())


def test_training_draws_its_starts_anew_and_evaluation_does_not() -> None:
    segmenter = model(alignment_weight=0.0)
    images, masks, query, query_mask = episode()
    with torch.no_grad():
        same = [segmenter(images, masks, query).scores for _ in range(2)]
        segmenter.train()
        segmenter.encoder.eval()
        drawn = [segmenter(images, masks, query) for _ in range(2)]
        torch.manual_seed(3)
        first = segmenter(images, masks, query).scores
        torch.manual_seed(3)
        assert torch.equal(segmenter(images, masks, query).scores, first)
    assert torch.equal(*same)
    assert not torch.allclose(drawn[0].scores, drawn[1].scores)
    assert set(segmenter.loss(drawn[0], query_mask)) == {"query", "total"}


@torch.no_grad()
def test_images_of_any_size_are_fitted_as_squares_and_saved_models_read(tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    segmenter = model("graph", size=64)
    segmenter.weights_origin = "given"
    pixels = np.random.default_rng(0).integers(0, 80, (60, 91, 3), dtype=np.uint8)
    mask = np.zeros((60, 91), np.uint8)
    mask[15:40, 20:60] = 1
    pixels[mask > 0] += 150
    task = segmenter.fit([(pixels, mask), (pixels[:, ::-1].copy(), mask[:, ::-1].copy())])
    assert task.shots == 2
    without = segmenter.predict(pixels, task)
    segmenter.unlabelled = segmenter.fit_unlabelled([pixels, pixels[::-1].copy()], segments=20)
    assert segmenter.unlabelled.features.shape[:2] == (1, 2)
    assert segmenter.unlabelled.present.sum() > 2
    segmenter.save(tmp_path / "ppnet.safetensors")
    again = fastfss.create_model(
        "ppnet",
        encoder="resnet18",
        layers=("layer2",),
        size=64,
        variant="graph",
        weights=tmp_path / "ppnet.safetensors",
    )
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in segmenter.state_dict().items())
    assert again.unlabelled is None
    assert np.array_equal(again.predict(pixels, task).labels, without.labels)
    again.unlabelled = segmenter.unlabelled
    found = again.predict(pixels, task)
    assert np.array_equal(found.labels, segmenter.predict(pixels, task).labels)
    assert found.labels.shape == (60, 91)
    # A support segmented with its own prototypes.
    truth = mask > 0
    assert (found.mask() & truth).sum() / (found.mask() | truth).sum() > 0.5
    with pytest.raises(ValueError, match="task: expected a task with prototypes 'one'"):
        plain = PPNet(again.encoder, layers=("layer2",), size=64, variant="plain")
        plain.weights_origin = "given"
        plain.predict(pixels, task)


@pytest.mark.parametrize("variant", VARIANTS)
def test_published_checkpoints_load_whatever_heads_they_hold(variant: str, tmp_path: Path) -> None:
    source = PPNet(create_encoder("ppnet_resnet50"), variant=variant)
    keys = PLAIN_KEYS if variant == "plain" else PPNET_KEYS
    published = {f"module.{keys.to_published(k)}": v for k, v in source.state_dict().items()}
    first = "encoder.backbone.conv1.weight" if variant == "plain" else "encoder.conv1.weight"
    assert f"module.{first}" in published
    torch.save(published, tmp_path / "ppnet.pth")
    again = fastfss.create_model("ppnet", variant=variant, weights=tmp_path / "ppnet.pth")
    own = source.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in again.state_dict().items())
    # A model without the heads takes the rest.
    part = fastfss.create_model("ppnet", weights=tmp_path / "ppnet.pth")
    assert part.fingerprint() == source.fingerprint()
    assert set(part.state_dict()) == {key for key in own if key.startswith("encoder.")}


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_the_copy_for_inference_agrees_in_float32_and_nearly_in_bfloat16(variant: str) -> None:
    segmenter = model(variant, graph=GraphConfig(threshold=0.0))
    images, masks, query, _ = episode(ways=2)
    pool = pool_of(segmenter) if variant == "graph" else None
    expected = segmenter.segment(query, tasks_of(segmenter, images, masks), unlabelled=pool)
    for dtype in (torch.float32, torch.bfloat16):
        fast = segmenter.for_inference(dtype=dtype)
        own = None if pool is None else pool.to(dtype=dtype)
        tasks = tasks_of(fast, images.to(dtype), masks)
        found = fast.segment(query.to(dtype), tasks, unlabelled=own)
        assert found.logits.dtype == dtype
        if dtype == torch.float32:
            assert_close(found.logits, expected.logits)
            assert_close(
                fast.segment(query, tasks_of(segmenter, images, masks), unlabelled=pool).logits,
                expected.logits,
            )
        else:
            best = expected.logits.topk(2, dim=1).values
            sure = best[:, 0] - best[:, 1] > 1.0
            assert sure.float().mean() > 0.2
            assert (found.labels == expected.labels)[sure].float().mean() > 0.97
    assert fast.settings() == segmenter.settings()


def test_scribbles_and_given_backgrounds_leave_the_rest_out() -> None:
    segmenter = model()
    images, masks, _, _ = episode()
    strokes = torch.full_like(masks, 255)
    strokes[..., 10:14, 6:20], strokes[..., 50:54, 5:40] = 1, 0
    given = segmenter.encode_support(
        images[:, 0], (strokes == 1).float()[:, 0], (strokes == 0).float()[:, 0]
    )
    excluding = model(ignored="excluded").encode_support(images[:, 0], strokes[:, 0])
    for key, tensor in given.tensors.items():
        assert torch.equal(tensor, excluding.tensors[key])
    assert given.tensors["regions"].sum() == 4 * 14 + 4 * 35


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="variant: expected one of plain, part, part_sem, graph"):
        model("parts")
    with pytest.raises(ValueError, match="ignored: expected one of background, excluded, got 'no'"):
        model(ignored="no")
    with pytest.raises(ValueError, match="alignment_average: expected one of shot, way"):
        model(alignment_average="all")
    for name in ("alignment_weight", "semantic_weight"):
        with pytest.raises(ValueError, match=f"{name}: expected a number >= 0, got -1"):
            model(**{name: -1})
    with pytest.raises(ValueError, match="parts: expected a positive number, got 0"):
        PartConfig(parts=0)
    with pytest.raises(ValueError, match='empty: expected "zero" or "previous", got \'none\''):
        PartConfig(empty="none")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="topk: expected a positive number, got 0"):
        GraphConfig(topk=0)
    with pytest.raises(ValueError, match="blend: expected a number from 0 to 1, got 2"):
        GraphConfig(blend=2)
    with pytest.raises(ValueError, match=r"has no feature map 'layer9'"):
        model(layer="layer9")
    segmenter = model()
    images, masks, query, query_mask = episode(ways=2)
    shots, shot_masks = images[:, 0], masks[:, 0]
    with pytest.raises(ValueError, match="images: expected the same size in all shots"):
        both = [shots[:, 0], shots[:, 0, :, 1:]]
        segmenter.encode_support(both, [shot_masks[:, 0], shot_masks[:, 0]])
    with pytest.raises(ValueError, match=r"backgrounds: expected \(1, 1, 65, 49\) as the masks"):
        segmenter.encode_support(shots, shot_masks, shot_masks[..., 1:])
    with pytest.raises(ValueError, match=r"query: expected \(B, 3, H, W\), got \(1, 1, 3, 65, 49"):
        segmenter(images, masks, query.unsqueeze(1))
    with pytest.raises(ValueError, match=r"masks: expected \(1, 2, 1, H, W\) for these images"):
        segmenter(images, masks[:, :1], query)
    with torch.no_grad():
        task = segmenter.encode_support(shots, shot_masks)
        with pytest.raises(ValueError, match=r"task: expected vectors \(B, K, 2, 256\), got"):
            model(layer="layer3").segment(query, task)
        with pytest.raises(ValueError, match="task: expected one with vectors, features, regions"):
            segmenter.segment(query, model("plain").encode_support(shots, shot_masks))
        with pytest.raises(ValueError, match="task: expected tasks whose features have one shape"):
            small = segmenter.encode_support(shots[..., :33, :33], shot_masks[..., :33, :33])
            segmenter.segment(query, [task, small])
        with pytest.raises(ValueError, match=r"starts: expected \(1, 2, G\) or \(2, G\), got"):
            segmenter.segment(query, task, starts=torch.zeros(3, 5, dtype=torch.int64))
        with pytest.raises(ValueError, match=r"starts: expected indices of \[\d+\] local vectors"):
            segmenter.segment(query, task, starts=torch.full((2, 5), 10**6))
        graph = model("graph")
        pool = pool_of(graph, batch=2)
        with pytest.raises(ValueError, match="unlabelled: expected none for the variant 'part'"):
            segmenter.segment(query, task, unlabelled=pool)
        with pytest.raises(ValueError, match="unlabelled: expected images of batch 1"):
            graph.segment(query, task, unlabelled=pool)
        with pytest.raises(ValueError, match=r"unlabelled: expected features \(B, U, S, 256\)"):
            model("graph", layer="layer3").check_unlabelled(pool)
        with pytest.raises(ValueError, match=r"images: expected \(B, U, 3, H, W\)"):
            graph.encode_unlabelled(query, torch.zeros(4, 4))
        with pytest.raises(ValueError, match=r"segments: expected \(1, 1, H, W\) or \(H, W\)"):
            graph.encode_unlabelled(query[None], torch.zeros(1, 3, 4, 4))
        with pytest.raises(ValueError, match="images: expected at least one image"):
            graph.fit_unlabelled([])
    trained = model("part_sem").train()
    with pytest.raises(ValueError, match="semantic_labels: expected labels of supports and query"):
        trained.loss(trained(images, masks, query), query_mask)
