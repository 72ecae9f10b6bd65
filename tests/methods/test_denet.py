from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import fastfss
from fastfss import DENet, Task, create_encoder
from fastfss.methods.denet import focal_loss
from fastfss.methods.prototypes import upsample
from tests.encoders.helpers import with_statistics
from tests.methods.episodes import picture
from tests.methods.published_denet import published_forward
from tests.tolerances import assert_close

CLASSES = 6


def model(**options: Any) -> DENet:
    torch.manual_seed(0)
    options = {"layers": ("layer3",), "classes": CLASSES, **options}
    made = DENet(create_encoder("resnet18"), **options)
    with_statistics(made)
    return made.eval()


def episode(
    batch: int = 1, ways: int = 1, shots: int = 1, size: tuple[int, int] = (64, 64), seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Supports (B, W, K, 3, H, W), masks, queries, class ids (B, W) that differ in each item."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(batch, ways, shots, 3, *size, generator=generator)
    masks = (torch.rand(batch, ways, shots, 4, 4, generator=generator) > 0.5).float()
    masks = F.interpolate(masks.flatten(0, 2).unsqueeze(1), size)
    masks = masks.squeeze(1).unflatten(0, (batch, ways, shots))
    query = torch.randn(batch, 3, *size, generator=generator)
    order = torch.rand(batch, CLASSES - 1, generator=generator).argsort(dim=1)
    return images, masks, query, order[:, :ways] + 1


def tasks_of(segmenter: DENet, images: Tensor, masks: Tensor, labels: Tensor) -> list[Task]:
    ways = zip(images.unbind(1), masks.unbind(1), labels.unbind(1), strict=True)
    return [segmenter.encode_support(*way) for way in ways]


# ---- The published forward


@pytest.mark.parametrize("size", [(64, 64), (81, 49)], ids=str)
@pytest.mark.parametrize(("batch", "ways", "shots"), [(1, 1, 1), (3, 1, 2), (2, 3, 2)])
@torch.no_grad()
def test_the_logits_equal_the_published_forward(
    batch: int, ways: int, shots: int, size: tuple[int, int]
) -> None:
    segmenter = model()
    images, masks, query, labels = episode(batch, ways, shots, size)
    full, binary = published_forward(segmenter, images, masks, query, labels)
    output = segmenter.classify(query, tasks_of(segmenter, images, masks, labels))
    assert_close(output.full, full)
    assert_close(output.binary(), binary)
    if ways == 1:
        prediction = segmenter.segment(query, tasks_of(segmenter, images, masks, labels))
        assert_close(prediction.logits, upsample(binary, size))


@torch.no_grad()
def test_a_batch_gives_what_its_episodes_give_alone() -> None:
    segmenter = model()
    images, masks, query, labels = episode(batch=3, ways=2, shots=2)
    together = segmenter.segment(query, tasks_of(segmenter, images, masks, labels)).logits
    for item in range(3):
        one = slice(item, item + 1)
        tasks = tasks_of(segmenter, images[one], masks[one], labels[one])
        assert_close(together[one], segmenter.segment(query[one], tasks).logits)


@torch.no_grad()
def test_shots_fitted_apart_and_merged_equal_shots_fitted_together() -> None:
    segmenter = model()
    images, masks, query, labels = episode(shots=3)
    (together,) = tasks_of(segmenter, images, masks, labels)
    apart = [
        tasks_of(segmenter, images[:, :, k : k + 1], masks[:, :, k : k + 1], labels)[0]
        for k in range(3)
    ]
    merged = apart[0].merge(*apart[1:])
    assert merged.tensors.keys() == {"prototype", "label"}
    assert torch.equal(merged.tensors["label"], together.tensors["label"])
    wanted = segmenter.segment(query, together).logits
    assert_close(segmenter.segment(query, merged).logits, wanted)
    wanted = segmenter.segment(query, apart[1]).logits
    assert_close(segmenter.segment(query, merged.select([1])).logits, wanted)


# ---- Labels and ways


@torch.no_grad()
def test_a_class_without_a_label_has_a_row_of_its_own_after_the_others() -> None:
    segmenter = model()
    images, masks, query, _ = episode(batch=2)
    task = segmenter.encode_support(images[:, 0], masks[:, 0])
    assert task.tensors.keys() == {"prototype"}
    output = segmenter.classify(query, task)
    features = segmenter.embed(query)
    assert output.full.shape[1] == CLASSES + 1
    base = F.conv2d(features, segmenter.estimator.weight[:, :, None, None])
    assert_close(output.full[:, :CLASSES], base)
    own = torch.einsum("bchw,bc->bhw", features, task.tensors["prototype"][:, 0])
    assert_close(output.full[:, CLASSES], own)
    assert_close(output.binary()[:, 0], base.amax(1))


@torch.no_grad()
def test_ways_with_and_without_labels_compete_and_share_one_encoding() -> None:
    segmenter = model()
    images, masks, query, labels = episode(ways=3)
    labelled = tasks_of(segmenter, images, masks, labels)
    plain = segmenter.encode_support(images[:, 1], masks[:, 1])
    calls: list[int] = []
    segmenter.encoder.register_forward_hook(lambda *_: calls.append(1))
    output = segmenter.classify(query, [labelled[0], plain, labelled[2]])
    prediction = segmenter.segment(query, [labelled[0], plain, labelled[2]])
    assert len(calls) == 2
    assert output.places.tolist() == [[labels[0, 0], CLASSES, labels[0, 2]]]
    assert prediction.logits.shape == (1, 4, 64, 64)
    best = prediction.margins.argmax(1) + 1
    assert torch.equal(prediction.labels, torch.where(prediction.margins.amax(1) > 0, best, 0))


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (0, ValueError, r"labels: expected class ids of 1 to 5, got \[0\]"),
        ([CLASSES], ValueError, r"labels: expected class ids of 1 to 5, got \[6\]"),
        ([1, 2], ValueError, "labels: expected one class id, or 3, one an episode, got 2 ids"),
        (1.5, TypeError, "labels: expected integers, got torch.float32"),
    ],
)
def test_wrong_labels_are_named(labels: Any, error: type[Exception], message: str) -> None:
    images, masks, _, _ = episode(batch=3)
    with pytest.raises(error, match=message):
        model().encode_support(images[:, 0], masks[:, 0], labels)


# ---- Options


@torch.no_grad()
def test_the_gate_averages_over_the_map_or_over_the_mask() -> None:
    """On a constant map the object's size counts in the published average alone."""
    features = torch.rand(1, 256, 1, 1).expand(2, 256, 8, 8)
    objects = torch.zeros(2, 1, 8, 8)
    objects[0, :, :2, :2] = 1
    objects[1, :, :, :4] = 1
    area = objects.sum((2, 3))
    published = model().estimator
    mean = features.mean((2, 3)) * area / (area + 1e-3)
    wanted = published.gam["gate"]((features * objects).mean((2, 3), keepdim=True)).flatten(1)
    assert_close(published.gate(mean, objects), wanted)
    assert not torch.allclose(*published.prototypes(features, objects), atol=1e-3)
    of_mask = model(gate_average="mask").estimator.prototypes(features, objects)
    assert torch.allclose(*of_mask, atol=1e-3)


@torch.no_grad()
def test_support_free_keeps_the_first_row_of_a_label() -> None:
    segmenter = model(support_free=True)
    images, masks, query, _ = episode(batch=2, shots=2)
    before = segmenter.estimator.weight.clone()
    calls: list[int] = []
    segmenter.encoder.register_forward_hook(lambda *_: calls.append(1))
    first = segmenter.encode_support(images[:1, 0], masks[:1, 0], 3)
    row = segmenter.estimator.weight[3]
    assert_close(row, first.tensors["prototype"].mean((0, 1)))
    untouched = torch.arange(CLASSES) != 3
    assert torch.equal(segmenter.estimator.weight[untouched], before[untouched])
    again = segmenter.encode_support(images[1:, 0], masks[1:, 0], 3)
    assert len(calls) == 1
    wanted = segmenter.classify(query[1:], first).full
    assert_close(segmenter.classify(query[1:], again).full, wanted)
    # Of a batch with a kept and a new label the kept one counts.
    mixed = segmenter.encode_support(images[:, 0].flip(0), masks[:, 0].flip(0), [3, 4])
    assert_close(mixed.tensors["prototype"][0, 0], row)
    assert_close(segmenter.estimator.weight[4], mixed.tensors["prototype"][1].mean(0))
    # The copy for inference keeps rows of its own.
    fast = segmenter.for_inference()
    fast.encode_support(images[:1, 0], masks[:1, 0], 5)
    assert torch.equal(segmenter.estimator.weight[5], before[5])
    assert not segmenter.estimator.keeps(torch.tensor([5]))


@torch.no_grad()
def test_the_classifier_stays_as_it_is_without_support_free() -> None:
    segmenter = model()
    images, masks, query, labels = episode(batch=2)
    before = segmenter.estimator.weight.clone()
    task = segmenter.encode_support(images[:, 0], masks[:, 0], labels[:, 0])
    segmenter.segment(query, task)
    assert torch.equal(segmenter.estimator.weight, before)


def test_a_task_is_accepted_after_support_free_has_kept_another_row() -> None:
    segmenter = model(support_free=True, size=48)
    segmenter.head_origin = segmenter.weights_origin = "given"
    image, mask = picture(50, 70)
    task = segmenter.fit([(image, mask)])
    segmenter.fit([(image, mask == 0)], label=2)
    assert segmenter.predict(image, task).labels.shape == mask.shape


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": 1}, "classes: expected at least 2"),
        ({"gate_average": "area"}, 'gate_average: expected "map" or "mask", got \'area\''),
        ({"layers": ("layer9",)}, "no feature map 'layer9'"),
        ({"size": 0}, "size: expected a positive number"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model(**options)


# ---- Training


def training_step(segmenter: DENet) -> dict[str, Tensor]:
    images, masks, query, labels = episode(batch=2, shots=2)
    target = torch.zeros(2, 64, 64, dtype=torch.long)
    target[:, 20:40] = labels.unsqueeze(2)
    target[:, :5] = 255
    mask = (target == labels.unsqueeze(2)).long()
    output = segmenter(images[:, 0], masks[:, 0], query, labels[:, 0])
    losses = segmenter.loss(output, target, mask)
    losses["total"].backward()
    return losses


def test_a_training_step_reaches_the_head_alone() -> None:
    segmenter = model().train()
    losses = training_step(segmenter)
    assert torch.equal(losses["total"], losses["knowledge"])
    moved = {n for n, p in segmenter.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {n for n, _ in segmenter.named_parameters() if not n.startswith("encoder.")}


@pytest.mark.parametrize("batch_statistics", [True, False])
def test_the_encoders_batch_norms_follow_the_option(batch_statistics: bool) -> None:
    segmenter = model(batch_statistics=batch_statistics).train()
    names = ("encoder.bn1.running_mean", "deeplab_head.bn.running_mean")
    before = [segmenter.state_dict()[name].clone() for name in names]
    training_step(segmenter)
    changed = [
        not torch.equal(segmenter.state_dict()[name], old)
        for name, old in zip(names, before, strict=True)
    ]
    assert changed == [batch_statistics, True]


def test_supports_go_through_the_encoder_first() -> None:
    segmenter = model().train()
    sizes: list[int] = []
    segmenter.encoder.register_forward_hook(lambda _, args, __: sizes.append(len(args[0])))
    training_step(segmenter)
    assert sizes == [4, 2]


def test_in_training_each_item_has_its_own_classifier_with_whole_inserted_rows() -> None:
    segmenter = model().train()
    rows = segmenter.estimator.base_rows(2)
    assert not torch.equal(rows[0] == 0, rows[1] == 0)
    weight = segmenter.estimator.weight
    assert ((rows == 0) | torch.isclose(rows, 2 * weight)).all()
    features = torch.randn(2, 256, 3, 3)
    prototype, labels = torch.randn(2, 1, 256), torch.tensor([[2], [4]])
    task = Task("denet", {"prototype": prototype, "label": labels})
    full = segmenter.head(features, [task]).full
    for item, label in enumerate((2, 4)):
        wanted = torch.einsum("chw,c->hw", features[item], prototype[item, 0])
        assert_close(full[item, label], wanted)


@pytest.mark.parametrize("class_weight", [1.0, 2.5])
def test_the_class_loss_is_weighted_image_by_image(class_weight: float) -> None:
    segmenter = model(class_weight=class_weight)
    images, masks, query, labels = episode(batch=2)
    target = torch.randint(0, CLASSES, (2, 64, 64), generator=torch.Generator().manual_seed(1))
    target[0, :9] = 255
    target[1, :, 3:] = 255
    output = segmenter(images[:, 0], masks[:, 0], query, labels[:, 0])
    loss = segmenter.loss(output, target, (target == 1).long())["knowledge"]
    full = upsample(output.full, (64, 64))
    alone = []
    for item, label in enumerate(labels[:, 0].tolist()):
        weight = torch.ones(CLASSES)
        weight[label] = class_weight
        one = slice(item, item + 1)
        alone.append(F.cross_entropy(full[one], target[one], weight, ignore_index=255))
    assert_close(loss, torch.stack(alone).mean())


def test_the_focal_loss_is_infinite_where_a_probability_underflows_unless_stable() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 2, 5, 5, generator=generator)
    masks = torch.randint(0, 2, (2, 5, 5), generator=generator)
    own = logits.softmax(1).gather(1, masks.unsqueeze(1)).squeeze(1)
    weight = torch.where(masks == 1, 0.75, 0.25)
    wanted = (weight * -((1 - own) ** 2) * own.log()).sum() / weight.sum()
    for stable in (False, True):
        assert_close(focal_loss(logits, masks, stable=stable), wanted)
    logits[0, :, 0, 0] = torch.tensor([300.0, 0.0])
    masks[0, 0, 0] = 1
    assert focal_loss(logits, masks, stable=False).isinf()
    assert focal_loss(logits, masks, stable=True).isfinite()
    masks[0, 0, 0] = 255
    valid = focal_loss(logits, masks, stable=False)
    assert_close(focal_loss(logits, masks, stable=True), valid)


# ---- One's own images, files, copies


def test_images_of_any_size_and_kind_are_fitted_and_predicted(tmp_path: Path) -> None:
    segmenter = model(size=48)
    segmenter.head_origin = segmenter.weights_origin = "given"
    image, mask = picture(50, 70)
    image.save(tmp_path / "photo.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    task = segmenter.fit([(tmp_path / "photo.png", tmp_path / "mask.png")] * 2, name="box")
    again = segmenter.fit([(np.asarray(image), mask > 0)], name="box", label=4)
    assert_close(again.tensors["prototype"], task.tensors["prototype"][:, :1])
    assert again.tensors["label"].tolist() == [[4]]
    query, _ = picture(33, 91)
    result = segmenter.predict(query, [task, segmenter.fit([(image, mask == 0)], name="rest")])
    assert result.labels.shape == (33, 91)
    assert result.names == ("box", "rest")
    task.save(tmp_path / "task.safetensors")
    loaded = Task.load(tmp_path / "task.safetensors")
    wanted = segmenter.predict(query, task).scores
    assert np.array_equal(segmenter.predict(query, loaded).scores, wanted)


@pytest.mark.filterwarnings("default")
def test_a_random_head_is_warned_about_at_the_callers_line() -> None:
    with pytest.warns(UserWarning, match="the head of DENet has random weights") as caught:
        model(size=48).fit([picture(50, 70)])
    assert caught[0].filename == __file__


def test_a_saved_model_comes_back_with_its_head(tmp_path: Path) -> None:
    segmenter = model()
    segmenter.save(tmp_path / "model.safetensors")
    made = fastfss.create_model(
        "denet",
        encoder="resnet18",
        layers=("layer3",),
        weights=tmp_path / "model.safetensors",
        classes=CLASSES,
    )
    assert made.head_origin == str(tmp_path / "model.safetensors")
    for name, tensor in segmenter.state_dict().items():
        assert torch.equal(made.state_dict()[name], tensor), name


def test_a_published_file_loads_by_its_own_names(tmp_path: Path) -> None:
    torch.manual_seed(0)
    segmenter = DENet(create_encoder("dilated_densenet121"))
    keys = DENet.published_keys
    published = {keys.to_published(name): t for name, t in segmenter.state_dict().items()}
    assert {"backbone.conv0.weight", "estimator.map.linear.bias"} <= published.keys()
    torch.save({"model": published, "epoch": 3}, tmp_path / "best_model.bin")
    made = fastfss.create_model(
        "denet", encoder="dilated_densenet121", weights=tmp_path / "best_model.bin"
    )
    assert made.fingerprint() == segmenter.fingerprint()
    with pytest.raises(ValueError, match=r"estimator\.weight: 21x256, expected 81x256"):
        fastfss.create_model(
            "denet",
            encoder="dilated_densenet121",
            weights=tmp_path / "best_model.bin",
            classes=81,
        )


@torch.no_grad()
def test_the_copy_for_inference_agrees_in_float32_and_nearly_in_bfloat16() -> None:
    segmenter = model()
    images, masks, query, labels = episode(shots=2)
    wanted = segmenter.segment(query, tasks_of(segmenter, images, masks, labels))
    fast = segmenter.for_inference()
    found = fast.segment(query, tasks_of(fast, images, masks, labels))
    assert_close(found.logits, wanted.logits)
    small = segmenter.for_inference(dtype=torch.bfloat16)
    tasks = tasks_of(small, images.bfloat16(), masks, labels)
    prediction = small.segment(query.bfloat16(), tasks)
    error = (prediction.logits.float() - wanted.logits).norm() / wanted.logits.norm()
    assert error < 0.05  # 8 bits through 25 convolutions


def test_wrong_supports_queries_and_tasks_are_named() -> None:
    segmenter = model()
    images, masks, query, _ = episode()
    image, mask = images[0], masks[0]
    with pytest.raises(ValueError, match="images: expected the same size in all shots, got 64 x"):
        segmenter.encode_support([image[0], image[0, :, :, 1:]], [mask[0], mask[0]])
    with pytest.raises(ValueError, match="masks: expected one mask an image"):
        segmenter.encode_support([image[0]], [])
    task = Task("denet", {"prototype": torch.zeros(1, 1, 64)})
    with pytest.raises(ValueError, match="task: expected prototypes of 256 channels"):
        segmenter.segment(query, task)
    with pytest.raises(ValueError, match="task: expected a task of method 'denet'"):
        segmenter.segment(query, Task("amp", dict(task.tensors)))
    with pytest.raises(ValueError, match=r"query: expected \(B, 3, H, W\)"):
        segmenter.segment(query[0], task)


def test_a_task_for_another_number_of_classes_is_refused() -> None:
    segmenter, other = model(size=48), model(size=48, classes=9)
    for one in (segmenter, other):
        one.head_origin = one.weights_origin = "given"
    image, mask = picture(50, 70)
    task = other.fit([(image, mask)], label=8)
    with pytest.raises(ValueError, match="classes '6'"):
        segmenter.predict(image, task)
