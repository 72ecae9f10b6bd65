from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from fastfss import HSNet, IMRHSNet, create_encoder
from fastfss.methods.mutual_level import MutualLevel
from tests.methods.published_imr_hsnet import (
    published_correlations,
    published_masked,
    published_predict,
    published_stages,
)
from tests.published import hsnet_correlation
from tests.tolerances import assert_close

SIZE = 97
GRID = 13


@pytest.fixture(scope="module")
def network() -> IMRHSNet:
    return make("resnet18", stages=3)


def make(encoder: str, **options: int) -> IMRHSNet:
    """Random weights, a state that is not zero, the last bias such that both labels occur."""
    torch.manual_seed(0)
    model = IMRHSNet(create_encoder(encoder), **options).eval()  # type: ignore[arg-type]
    torch.nn.init.normal_(model.state)
    images, maps, query, query_map = episode()
    with torch.no_grad():
        task = model.encode_support(images, maps)
        shots = model.shot_logits(model.encode(query), [task], (SIZE, SIZE), query_map)[0]
        last = model.res[-1]
        assert isinstance(last, torch.nn.Conv2d) and last.bias is not None
        last.bias[1] -= (shots[:, :, 1] - shots[:, :, 0]).median()
    return model


def episode(
    batch: int = 1, shots: int = 1, size: tuple[int, int] = (SIZE, SIZE), seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images, the supports' activation maps, queries, and their maps (B, 1, h, w)."""
    generator = torch.Generator().manual_seed(seed)
    grid = [-(-side // 8) for side in size]
    maps = torch.rand(batch, shots + 1, *grid, generator=generator)
    maps = (maps - 0.2).clamp_min(0) / 0.8  # with zeros, as class activation maps have them
    images = torch.randn(batch, shots + 1, 3, *size, generator=generator)
    return images[:, :-1], maps[:, :-1], images[:, -1], maps[:, -1:]


@torch.no_grad()
@pytest.mark.parametrize("size", [(97, 97), (65, 121)])
@pytest.mark.parametrize("encoder", ["resnet18", "blocks_resnet50", "blocks_vgg16"])
def test_every_stage_is_the_published_one(encoder: str, size: tuple[int, int]) -> None:
    if encoder == "blocks_vgg16" and size != (97, 97):
        size = (96, 128)  # its grids halve without a rest
    model = make(encoder, stages=2)
    images, _, query, _ = episode(size=size)
    sides = []
    for seed, image in ((0, query), (1, images[:, 0])):
        maps = model.maps(image)
        grid = maps[model.levels[0][0]].shape[2:]
        activation = torch.rand(1, *grid, generator=torch.Generator().manual_seed(seed))
        sides.append(maps | {"middle": model.middle(maps), "map": (activation - 0.3).relu()})
    stages = model.refine(*sides)
    plain = [{n: m for n, m in side.items() if n in model.layers} for side in sides]
    wanted = published_stages(model, *plain, *(side["map"] for side in sides))
    for stage, (query_logits, support_logits) in zip(stages, wanted, strict=True):
        assert_close(stage.logits[:1] / 5, query_logits / 5)
        assert_close(stage.logits[1:] / 5, support_logits / 5)


@torch.no_grad()
@pytest.mark.parametrize("memory_mib", [1, 256])
def test_labels_are_the_published_ones(network: IMRHSNet, memory_mib: int) -> None:
    images, maps, query, query_map = episode(shots=3)
    network.memory_mib = memory_mib
    task = network.encode_support(images, maps)
    logits, labels = published_predict(
        network, list(images.unbind(1)), list(maps.unbind(1)), query, query_map[:, 0]
    )
    shots = network.shot_logits(network.encode(query), [task], (SIZE, SIZE), query_map)[0]
    assert_close(shots[:, -1] / 5, logits / 5)
    found = network.segment(query, task, query_map=query_map).labels
    assert (found != labels).double().mean() < 1e-3  # logits within rounding of each other
    assert 0 < labels.float().mean() < 1


@torch.no_grad()
def test_a_batch_gives_what_its_episodes_give_alone(network: IMRHSNet) -> None:
    images, maps, query, query_map = episode(batch=2, shots=2)
    task = network.encode_support(images, maps)
    together = network.shot_logits(network.encode(query), [task], (SIZE, SIZE), query_map)[0]
    for item in range(2):
        one = slice(item, item + 1)
        alone = network.encode_support(images[one], maps[one])
        found = network.shot_logits(
            network.encode(query[one]), [alone], (SIZE, SIZE), query_map[one]
        )[0]
        assert_close(together[one] / 5, found / 5)


@torch.no_grad()
def test_each_way_has_its_own_map_of_the_query(network: IMRHSNet) -> None:
    images, maps, query, query_map = episode()
    others, other_maps, _, other_map = episode(shots=2, seed=1)
    tasks = [network.encode_support(images, maps), network.encode_support(others, other_maps)]
    calls = []
    hook = network.encoder.register_forward_hook(lambda *_: calls.append(1))
    both = network.segment(query, tasks, query_map=torch.cat([query_map, other_map], dim=1))
    hook.remove()
    assert len(calls) == 1
    for way, (task, own) in enumerate(zip(tasks, (query_map, other_map), strict=True)):
        alone = network.segment(query, task, query_map=own).margins
        assert_close(both.margins[:, way : way + 1] / 5, alone / 5)


@torch.no_grad()
def test_the_last_stage_of_the_support_is_not_needed(network: IMRHSNet) -> None:
    images, maps, query, query_map = episode(batch=2)
    query_maps = network.maps(query)
    queries = query_maps | {"middle": network.middle(query_maps), "map": query_map[:, 0]}
    task = network.encode_support(images, maps)
    support = {name: one[:, 0] for name, one in task.tensors.items()}
    both, queries_alone = (network.refine(queries, support, both=one) for one in (True, False))
    assert len(queries_alone[-1].logits) == 2 < len(both[-1].logits) == 4
    assert_close(queries_alone[-1].logits / 5, both[-1].logits[:2] / 5)
    assert_close(network.match(queries, support), queries_alone[-1].logits)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("grid", [(5, 5), (4, 7)])
def test_masked_correlations_are_the_product_scaled(grid: tuple[int, int], grad: bool) -> None:
    """Pixels of zero, of features 1e-4 and of masks 1e-3, against masked maps in float64."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(2, *shape, *grid, generator=generator)

    sides = [[drawn(6), drawn(9)] for _ in range(2)]
    for maps in sides:
        maps[0][0, :, 0, 0], maps[1][1, :, 1, 1] = 0, 1e-4
    masks = [torch.rand(2, 1, *grid, generator=generator) for _ in range(2)]
    for mask in masks:
        mask[:, :, 0, 1], mask[:, :, 2, 2] = 0, 1e-3
    with torch.set_grad_enabled(grad):
        level = MutualLevel.of(*sides).masked(torch.cat(masks))
    masked = [
        [(one * mask).double() for one in maps] for maps, mask in zip(sides, masks, strict=True)
    ]
    wanted = torch.cat([hsnet_correlation(*masked), hsnet_correlation(*masked[::-1])])
    assert_close(level.correlations(), wanted, dtype=torch.float32)
    assert level.shape == wanted.shape
    part = torch.full((4, 2, 2, *grid[1:], *grid), torch.nan)
    level.fill(part, 1)
    assert_close(part, wanted[:, :, 1:3], dtype=torch.float32)
    queries = level.of_queries()
    assert queries.shape[0] == 2
    assert_close(queries.correlations(), wanted[:2], dtype=torch.float32)


def test_the_first_masks_are_crossed_as_published(network: IMRHSNet) -> None:
    """The query's map masks the support's features and the other way round."""
    images, maps, query, query_map = episode()
    sides = [network.maps(one) for one in (query, images[:, 0])]
    crossed = [published_masked(sides[0], maps[:, :1]), published_masked(sides[1], query_map)]
    wanted = published_correlations(network, *crossed)
    seen: list[Tensor] = []
    hook = network.hpn_learner.register_forward_pre_hook(
        lambda _, levels: seen.append(levels[0].correlations())
    )
    full = [
        side | {"middle": network.middle(side), "map": activation}
        for side, activation in zip(sides, (query_map[:, 0], maps[:, 0]), strict=True)
    ]
    with torch.no_grad():
        network.refine(*full)
    hook.remove()
    assert_close(seen[0][:1], wanted[0])


def test_training_reaches_all_but_the_encoder() -> None:
    torch.manual_seed(0)
    model = IMRHSNet(create_encoder("resnet18")).train()
    images, maps, query, query_map = episode(batch=2)
    mask, support_mask = torch.zeros(2, 2, SIZE, SIZE).unbind(0)
    mask[:, 20:60, 20:60], support_mask[:, 5:30, 40:] = 1, 1
    mask[:, :5] = 255
    output = model(images, maps, query, query_map)
    losses = model.loss(output, mask, support_mask)
    assert [*losses] == ["query_1", "support_1", "query_2", "support_2", "total"]
    losses["total"].backward()
    assert all(p.grad is None for p in model.encoder.parameters())
    trained = {n: p for n, p in model.named_parameters() if not n.startswith("encoder.")}
    still = [n for n, p in trained.items() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not still
    without = torch.where(mask == 255, 0, mask)
    assert_close(losses["query_2"], model.loss(output, without, support_mask)["query_2"])


def test_gradients_are_the_published_ones(network: IMRHSNet) -> None:
    model = make("resnet18", stages=2).double()
    images, maps, query, query_map = (one.double() for one in episode())
    mask = (torch.rand(1, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) > 0.5).long()
    model.loss(model(images, maps, query, query_map), mask, 1 - mask)["total"].backward()
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    sides = [model.maps(one) for one in (query, images[:, 0])]
    total = torch.zeros((), dtype=torch.float64)
    for both in published_stages(model, *sides, query_map[:, 0], maps[:, 0]):
        for logits, target in zip(both, (mask, 1 - mask), strict=True):
            large = torch.nn.functional.interpolate(
                logits, (SIZE, SIZE), mode="bilinear", align_corners=True
            )
            total = total + torch.nn.functional.cross_entropy(large, target)
    total.backward()
    for name, gradient in found.items():
        wanted = model.get_parameter(name).grad
        assert wanted is not None
        assert (gradient - wanted).norm() < 1e-8 * wanted.norm() + 1e-12, name


@torch.no_grad()
def test_maps_of_other_sizes_come_to_the_finest_grid(network: IMRHSNet) -> None:
    images, _, query, _ = episode()
    ones = torch.ones(1, 1, SIZE, SIZE)
    task = network.encode_support(images, ones)
    assert task.tensors["map"].shape == (1, 1, GRID, GRID)
    ignored = torch.full_like(ones, 255)
    assert network.encode_support(images, ignored).tensors["map"].abs().max() == 0
    masks = torch.zeros(1, 1, SIZE, SIZE, dtype=torch.uint8)
    masks[..., 20:70] = 1
    found = network.encode_support(images, masks).tensors["map"]
    assert 0 < found.mean() < 1 and found.max() == 1
    small = network.segment(query, task, query_map=torch.ones(1, 1, 2, 2)).logits
    assert_close(small, network.segment(query, task, query_map=ones).logits)


@torch.no_grad()
def test_a_query_without_its_map_is_refused_or_gets_ones(network: IMRHSNet) -> None:
    images, maps, query, _ = episode()
    task = network.encode_support(images, maps)
    with pytest.raises(ValueError, match=r"query_map: expected the activation map .*, got none"):
        network.segment(query, task)
    network.query_map = "uniform"
    try:
        found = network.segment(query, task).logits
    finally:
        network.query_map = "given"
    assert_close(found, network.segment(query, task, query_map=torch.ones(1, 1, 9, 9)).logits)


@pytest.mark.filterwarnings("ignore:the head of IMR-HSNet")
def test_predict_takes_maps_or_makes_them_of_the_tasks_names() -> None:
    model = make("resnet18", size=SIZE)
    generator = np.random.default_rng(0)
    photo, query = generator.integers(0, 256, (2, 50, 70, 3), dtype=np.uint8)
    mask = np.zeros((50, 70), np.uint8)
    mask[10:30, 20:60] = 1
    tasks = [model.fit([(photo, mask)], name=name) for name in ("cat", "dog")]
    maps = torch.rand(2, 20, 30)
    with pytest.raises(ValueError, match="query_map: expected the activation map"):
        model.predict(query, tasks)
    wanted = model.predict(query, tasks, query_map=maps)
    assert wanted.labels.shape == (50, 70)
    asked = []

    def label_maps(image: Tensor, labels: Sequence[str]) -> Tensor:
        asked.append((tuple(image.shape), image.dtype, list(labels)))
        return maps

    model.label_maps = label_maps
    assert np.array_equal(model.predict(query, tasks).scores, wanted.scores)
    assert asked == [((3, 50, 70), torch.uint8, ["cat", "dog"])]
    one = model.predict(query, tasks[0], query_map=maps[0].numpy())
    np.testing.assert_allclose(one.scores[0], wanted.scores[0], atol=1e-4)


@torch.no_grad()
def test_the_copy_for_inference_agrees_and_leaves_the_state_alone(network: IMRHSNet) -> None:
    images, maps, query, query_map = episode()
    fast = network.for_inference()
    assert network.state.requires_grad and not fast.state.requires_grad
    task = fast.encode_support(images, maps)
    wanted = network.segment(query, network.encode_support(images, maps), query_map=query_map)
    found = fast.segment(query, task, query_map=query_map)
    assert_close(found.logits / 5, wanted.logits / 5)
    low = network.for_inference(dtype=torch.bfloat16)
    assert low.state.dtype == torch.bfloat16
    task = low.encode_support(images.bfloat16(), maps)
    logits = low.segment(query.bfloat16(), task, query_map=query_map).logits
    assert (logits.float() - wanted.logits).norm() < 0.1 * wanted.logits.norm()


def test_wrong_arguments_are_named(network: IMRHSNet) -> None:
    encoder = create_encoder("resnet18")
    with pytest.raises(ValueError, match="stages: expected at least 1, got 0"):
        IMRHSNet(encoder, stages=0)
    with pytest.raises(ValueError, match="query_map: expected one of given, uniform, got 'none'"):
        IMRHSNet(encoder, query_map="none")  # type: ignore[arg-type]
    images, maps, query, query_map = episode()
    with pytest.raises(ValueError, match="images: expected the same size in all shots"):
        network.encode_support([images[:, 0], images[:, 0, :, :64]], [maps[:, 0]] * 2)
    task = network.encode_support(images, maps)
    for wrong in (query_map[0], query_map.expand(2, -1, -1, -1), query_map.expand(-1, 2, -1, -1)):
        with pytest.raises(ValueError, match=r"query_map: expected \(1, 1, h, w\)"):
            network.segment(query, task, query_map=wrong)
    with pytest.raises(ValueError, match="task: expected maps of the query's grid"):
        network.segment(query[:, :, :64], task, query_map=query_map)
    with pytest.raises(ValueError, match="task: expected a task of method 'imr-hsnet'"):
        network.segment(query, HSNet(encoder).encode_support(images, maps), query_map=query_map)
    two, two_maps, _, _ = episode(shots=2)
    with pytest.raises(ValueError, match="images: expected one shot"):
        network(two, two_maps, query, query_map)
