"""Guided networks: the published forwards, shots and ways, what is refused."""

from __future__ import annotations

import copy
from functools import reduce

import pytest
import torch

from fastfss import Task, create_model
from fastfss.methods import GuidedSegmenter
from tests.methods.guided_networks import IGNORED, dense, mask_of, network, pictures, points
from tests.methods.published_guided import (
    published_cofeat_early,
    published_interactive_early,
    published_interactive_late,
    published_late,
    published_unshared,
)
from tests.tolerances import assert_close


@pytest.mark.parametrize(
    "sizes",
    [[(97, 129)], [(33, 34)], [(70, 101), (64, 96), (129, 50)]],
    ids=["one shot", "one position", "shots of different sizes"],
)
@torch.no_grad()
def test_late_guidance_equals_the_published_forward(sizes: list[tuple[int, int]]) -> None:
    model = network("cofeat-late-lite")
    images = pictures(*sizes)
    labels = [points(size, 0, 1, seed=n) for n, size in enumerate(sizes)]
    labels[0] = dense(sizes[0])
    (query,) = pictures((75, 110), seed=1)
    task = model.encode_support(images, labels)
    wanted = published_late(model, list(zip(images, labels, strict=True)), query)
    assert_close(model.segment(query, task).logits, wanted)
    assert_close(model.for_inference().segment(query, task).logits, wanted)


@torch.no_grad()
def test_several_ways_are_scored_value_by_value_as_published() -> None:
    model = network("cofeat-late-lite")
    sizes = [(70, 101), (64, 96), (99, 50)]
    images, (query,) = pictures(*sizes), pictures((75, 110), seed=1)
    # Label maps of three objects; the first image shows no 2, the last no background point.
    labels = [
        points(sizes[0], 0, 1, 3),
        points(sizes[1], 0, 1, 2, seed=1),
        points(sizes[2], 2, 3, seed=2),
    ]
    wanted = published_late(model, list(zip(images, labels, strict=True)), query, values=4)
    tasks = model.encode_ways(images, labels, 3)
    prediction = model.segment(query, tasks)
    assert_close(prediction.logits, wanted)
    assert torch.equal(prediction.labels, wanted.argmax(1))
    logits = prediction.logits
    others = torch.cat([logits[:, :2], logits[:, 3:]], 1).amax(1)
    assert_close(prediction.margins[:, 1], logits[:, 2] - others)
    # The same from one task a way, as fitted apart.
    apart = [
        model.encode_support(images, [mask_of(one, way) for one in labels]) for way in (1, 2, 3)
    ]
    assert_close(model.segment(query, apart).logits, wanted)


@pytest.mark.parametrize("short_circuit", [False, True], ids=["skipped", "as published"])
@torch.no_grad()
def test_a_shot_without_annotation(short_circuit: bool) -> None:
    model = network("cofeat-late-lite", legacy_short_circuit=short_circuit)
    sizes = [(70, 101), (64, 96), (99, 50)]
    images, (query,) = pictures(*sizes), pictures((75, 110), seed=1)
    labels = [points(sizes[0], 0, 1), points(sizes[1]), points(sizes[2], 0, 1, seed=2)]
    shots = list(zip(images, labels, strict=True))
    task = model.encode_support(images, labels)
    found = model.segment(query, task).logits
    assert_close(found, published_late(model, shots, query, short_circuit=short_circuit))
    read = shots[:1] if short_circuit else [shots[0], shots[2]]
    assert_close(found, published_late(model, read, query))


@torch.no_grad()
def test_merging_tasks_is_cumulative_guidance() -> None:
    model = network("cofeat-late-lite")
    sizes = [(70, 101), (64, 96), (99, 50)]
    images, (query,) = pictures(*sizes), pictures((75, 110), seed=1)
    labels = [points(sizes[0], 0, 1), points(sizes[1], 0, seed=1), points(sizes[2], 1, seed=2)]
    shots = list(zip(images, labels, strict=True))
    tasks = [model.encode_support([image], [one]) for image, one in shots]
    for count in (1, 2, 3):
        merged = reduce(Task.merge, tasks[:count])
        wanted = published_late(model, shots[:count], query)
        assert_close(model.segment(query, merged).logits, wanted)
    without = reduce(Task.merge, tasks).remove(1)
    wanted = published_late(model, [shots[0], shots[2]], query)
    assert_close(model.segment(query, without).logits, wanted)


@torch.no_grad()
def test_a_way_that_nothing_annotates_competes_unless_told_otherwise() -> None:
    images, (query,) = pictures((70, 101)), pictures((75, 110), seed=1)
    background, both = points((70, 101), 0), points((70, 101), 0, 1)
    model = network("cofeat-late-lite")
    tasks = [model.encode_support(images, [one]) for one in (background, both)]
    wanted = published_late(
        model, [(images[0], background), (images[0], torch.where(both == 1, 2, both))], query, 3
    )
    assert_close(model.segment(query, tasks).logits, wanted)
    silent = network("cofeat-late-lite", empty_competes=False)
    silent.load_state_dict(model.state_dict())
    prediction = silent.segment(query, tasks)
    assert (prediction.labels != 1).all()
    assert (prediction.probabilities[:, 0] == 0).all()
    assert_close(prediction.logits[:, ::2], wanted[:, ::2])


@torch.no_grad()
def test_the_unshared_head_equals_the_published_forward() -> None:
    model = network("cofeat-late-lite-unshared")
    sizes = [(70, 101), (64, 96)]
    images, (query,) = pictures(*sizes), pictures((75, 110), seed=1)
    labels = [points(sizes[0], 0, 1), points(sizes[1], 0, seed=1)]  # no object in the second
    shots = list(zip(images, labels, strict=True))
    task = model.encode_support(images, labels)
    assert_close(model.segment(query, task).logits, published_unshared(model, shots, query))
    # The fix: a shot without a value does not count for it.
    fixed = network("cofeat-late-lite-unshared", average="annotated")
    fixed.load_state_dict(model.state_dict())
    half = fixed.segment(query, task).logits
    doubled = dict(task.tensors) | {"guidance": task.tensors["guidance"].clone()}
    doubled["guidance"][:, :, 1] *= 2  # one of two shots has the object
    assert_close(half, model.segment(query, Task(model.method, doubled)).logits)
    # Each way is told from its own background.
    several = model.segment(query, [task, task])
    assert_close(several.margins[:, 1], model.segment(query, task).margins[:, 0])


@pytest.mark.parametrize(
    "sizes", [[(97, 129)], [(70, 101), (64, 96), (129, 50)]], ids=["one shot", "different sizes"]
)
@torch.no_grad()
def test_early_guidance_equals_the_published_forward(sizes: list[tuple[int, int]]) -> None:
    model = network("cofeat-early")
    images, (query,) = pictures(*sizes), pictures((75, 110), seed=1)
    labels = [points(size, 0, 1, seed=n) for n, size in enumerate(sizes)]
    wanted = published_cofeat_early(model, list(zip(images, labels, strict=True)), query)
    task = model.encode_support(images, labels)
    assert_close(model.segment(query, task).logits, wanted)
    assert_close(model.for_inference().segment(query, task).logits, wanted)


@torch.no_grad()
def test_local_guidance_equals_the_published_forward() -> None:
    model = network("interactive-late", encoder="fcn_vgg16_lite")
    (query,) = pictures((99, 131))
    labels = points((99, 131), 0, 1, 2)
    tasks = [model.encode_support([query], [mask_of(labels, way)]) for way in (1, 2)]
    wanted = published_interactive_late(model, query, labels, values=3)
    assert_close(model.segment(query, tasks).logits, wanted)
    assert_close(model.for_inference().segment(query, tasks).logits, wanted)
    one = published_interactive_late(model, query, labels)
    assert_close(model.segment(query, tasks[0]).logits, one)


@torch.no_grad()
def test_the_early_interactive_network_equals_the_published_forward() -> None:
    model = network("interactive-early-lite")
    (query,) = pictures((99, 131))
    for labels in (points((99, 131), 0, 1), dense((99, 131))):
        task = model.encode_support([query], [labels])
        wanted = published_interactive_early(model, query, labels)
        assert_close(model.segment(query, task).logits, wanted)
        assert_close(model.for_inference().segment(query, [task, task]).margins[:, 1:],
                     (wanted[:, 1:] - wanted[:, :1]))  # fmt: skip


@pytest.mark.parametrize("name", ["interactive-late", "interactive-early"])
@torch.no_grad()
def test_further_clicks_are_further_shots_of_the_same_image(name: str) -> None:
    model = network(name, encoder="fcn_vgg16_lite")
    (query,) = pictures((99, 131))
    labels = points((99, 131), 0, 1)
    place = (labels == 1).nonzero()[0]
    first, second = labels.clone(), torch.full_like(labels, IGNORED)
    first[tuple(place)], second[tuple(place)] = IGNORED, 1
    clicks = [model.encode_support([query], [one]) for one in (first, second)]
    wanted = model.segment(query, model.encode_support([query], [labels])).logits
    assert_close(model.segment(query, clicks[0].merge(clicks[1])).logits, wanted)


@pytest.mark.parametrize(
    "name", ["cofeat-late-lite", "cofeat-late-lite-unshared", "cofeat-early",
             "interactive-late", "interactive-early-lite"],
)  # fmt: skip
@torch.no_grad()
def test_a_batch_equals_its_episodes_alone(name: str) -> None:
    options = {"encoder": "fcn_vgg16_lite"} if name == "interactive-late" else {}
    model = network(name, **options)
    queries, images = pictures((75, 110), (75, 110), batch=2)
    labels = points((75, 110), 0, 1, batch=2)
    labels[1][labels[1] == 1] = IGNORED
    together = model.segment(queries, model.encode_support([images], [labels])).logits
    for n in (0, 1):
        alone = model.encode_support([images[n : n + 1]], [labels[n : n + 1]])
        assert_close(together[n : n + 1], model.segment(queries[n : n + 1], alone).logits)


@pytest.mark.parametrize("name", ["interactive-late", "interactive-early"])
@torch.no_grad()
def test_an_encoded_query_takes_its_annotation_later(name: str) -> None:
    model = network(name, encoder="fcn_vgg16_lite")
    (query,) = pictures((75, 110), batch=2)
    encoded = model.encode(query)
    for seed in (0, 1):
        labels = points((75, 110), 0, 1, batch=2, seed=seed)
        task = model.support_from([encoded], [labels])
        wanted = model.segment(query, model.encode_support([query], [labels])).logits
        assert_close(model.segment_from(encoded, task).logits, wanted)
    assert model.cheap_update == (name == "interactive-late")


@torch.no_grad()
def test_a_mask_of_another_size_than_its_image_means_the_same_places() -> None:
    model = network("cofeat-late-lite")
    (image,) = pictures((96, 128))
    small = dense((96, 128))
    large = small.repeat_interleave(3, 1).repeat_interleave(3, 2)
    tasks = [model.encode_support([image], [one]) for one in (small, large)]
    first, second = (task.tensors["guidance"] for task in tasks)
    assert (first - second).norm() < 2e-3 * first.norm()


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32], ids=str)
@torch.no_grad()
def test_masks_may_have_any_dtype(dtype: torch.dtype) -> None:
    model = network("cofeat-late-lite")
    (image,) = pictures((96, 128))
    mask = dense((96, 128))
    wanted = model.encode_support([image], [mask]).tensors["guidance"]
    assert torch.equal(model.encode_support([image], [mask.to(dtype)]).tensors["guidance"], wanted)


@torch.no_grad()
def test_another_encoder_guides_too() -> None:
    torch.manual_seed(0)
    model = create_model("guided-late", encoder="mobilenet_v2", layers=("layer3", "layer4"))
    images, (query,) = pictures((70, 101)), pictures((75, 110), seed=1)
    task = model.encode_support(images, [dense((70, 101))])
    assert model.segment(query / 60, task).logits.shape == (1, 2, 75, 110)
    with pytest.raises(ValueError, match="encoder: expected fcn_vgg16 or fcn_vgg16_lite, got resn"):
        create_model("guided-early", encoder="resnet18", layers=("layer4",))


@torch.no_grad()
def test_fcn32s_has_classes_of_its_own() -> None:
    model = network("fgbg-lite")
    (image,) = pictures((75, 110))
    logits = model(image)
    assert logits.shape == (1, 2, 75, 110)
    assert logits.std() > 0
    for call in (
        lambda: model.segment(image, None),
        lambda: model.encode_support([image], [image]),
    ):
        with pytest.raises(TypeError, match="fcn32s takes no support"):
            call()
    with pytest.raises(TypeError, match="fcn32s takes no support"), pytest.warns(UserWarning):
        create_model("fgbg-lite").fit([(torch.rand(3, 40, 40), torch.eye(40))])


def test_a_task_is_refused_by_networks_that_it_does_not_fit() -> None:
    late, local = network("cofeat-late-lite"), network("interactive-late", encoder="fcn_vgg16_lite")
    early = network("interactive-early-lite")
    image, other = pictures((70, 101), (99, 50))
    labels = points((70, 101), 0, 1)
    wrong = Task("guided-late", {"guidance": torch.zeros(1, 1, 2, 99)})
    with pytest.raises(ValueError, match=r"task: expected guidance \(B, K, 2, 256\)"):
        late.segment(image, wrong)
    with pytest.raises(ValueError, match=r"task: expected one of the query itself, with mass"):
        local.segment(other, local.encode_support([image], [labels]))
    with pytest.raises(ValueError, match=r"task: expected one of the query itself, 99 x 50"):
        early.segment(other, early.encode_support([image], [labels]))
    with pytest.raises(ValueError, match="images: expected one image in all shots"):
        local.encode_support([image, other], [labels, points((99, 50), 0)])
    with pytest.raises(ValueError, match="images: expected at least 33 pixels a side, got 32 x 40"):
        late.encode_support(pictures((32, 40)), [dense((32, 40))])
    with pytest.raises(ValueError, match="ways: expected a positive number, got 0"):
        late.encode_ways([image], [labels], 0)
    with pytest.raises(ValueError, match="average: expected one of annotated, all, got 'median'"):
        create_model("cofeat-late-lite", average="median")
    with pytest.raises(ValueError, match="legacy_short_circuit: expected False without a shared"):
        create_model("cofeat-late-lite-unshared", legacy_short_circuit=True)
    with pytest.raises(ValueError, match="classes: expected at least 2"):
        create_model("fcn32s-lite", classes=1)


def test_the_loss_is_the_mean_over_the_queries_of_each_ones_own() -> None:
    model = network("cofeat-late-lite")
    logits = torch.randn(2, 3, 7, 9, generator=torch.Generator().manual_seed(0))
    target = torch.randint(3, (2, 7, 9), generator=torch.Generator().manual_seed(1))
    target[0, :5] = IGNORED
    each = [
        torch.nn.functional.cross_entropy(logits[n : n + 1], target[n : n + 1], ignore_index=255)
        for n in (0, 1)
    ]
    assert_close(model.loss(logits, target), torch.stack(each).mean())
    assert model.loss(logits, torch.full_like(target, IGNORED)) == 0


@pytest.mark.parametrize("name", ["cofeat-late-lite", "cofeat-late-lite-unshared", "cofeat-early"])
def test_gradients_reach_everything_through_query_and_support(name: str) -> None:
    model: GuidedSegmenter = copy.deepcopy(network(name)).requires_grad_(True).train()
    images, (query,) = pictures((70, 101), (64, 96)), pictures((75, 110), seed=1)
    labels = [points((70, 101), 0, 1), points((64, 96), 0, 1)]
    loss = model.loss(model(images, labels, query), dense((75, 110)))
    loss.backward()
    missing = [
        key
        for key, parameter in model.named_parameters()
        if parameter.grad is None or (parameter.grad.abs().max() == 0 and "score.bias" not in key)
    ]
    assert not missing
    task = model.encode_support(images, labels)
    assert task.tensors["guidance"].requires_grad


@torch.no_grad()
def test_the_output_can_have_another_size_than_the_query() -> None:
    model = network("cofeat-late-lite")
    (image, query) = pictures((70, 101), (64, 96))
    task = model.encode_support([image], [dense((70, 101))])
    own = model.segment(query, task).logits
    thrice = model.segment(query, task, output_size=(192, 288)).logits
    # The decoder read between pixels: the middle of each 3 x 3 is the pixel itself.
    assert_close(thrice[:, :, 1::3, 1::3], own)


@pytest.mark.filterwarnings("ignore:.*random weights.*:UserWarning")
@torch.no_grad()
def test_an_interactive_image_is_fitted_and_predicted_like_any_other() -> None:
    image = torch.randint(256, (3, 80, 70), dtype=torch.uint8)
    labels = dense((80, 70))[0]
    for name in ("interactive-late", "interactive-early", "guided-late"):
        model = network(name, encoder="fcn_vgg16_lite")
        result = model.predict(image, model.fit([(image, labels)]))
        assert result.labels.shape == (80, 70)
