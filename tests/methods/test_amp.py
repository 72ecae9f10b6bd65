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
from fastfss import AMP, Task, create_encoder
from fastfss.methods.amp import moved, moved_in_turn
from fastfss.methods.prototypes import upsample
from tests.encoders.helpers import with_statistics
from tests.methods.episodes import picture
from tests.methods.published_amp import published_forward
from tests.tolerances import assert_close

CLASSES = 6
LAYERS = ("layer2", "layer3", "layer4")
ALPHA = 0.25821


def model(**options: Any) -> AMP:
    torch.manual_seed(0)
    options = {"layers": LAYERS, "classes": CLASSES, "depth": 48, **options}
    made = AMP(create_encoder("resnet18"), **options)
    with_statistics(made)
    return made.eval()


def known(segmenter: AMP) -> AMP:
    """The model without the warning that its weights are random."""
    segmenter.head_origin = segmenter.weights_origin = "given"
    return segmenter


def rows(segmenter: AMP) -> list[Tensor]:
    """Row 0 of the three classifiers."""
    return [one.weight[0].detach().flatten().clone() for one in segmenter.classifiers]


def episode(
    batch: int = 1, shots: int = 1, size: tuple[int, int] = (64, 64), seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Supports (B, K, 3, H, W), masks, queries, class ids (B,)."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(batch, shots, 3, *size, generator=generator)
    masks = (torch.rand(batch, shots, 4, 4, generator=generator) > 0.5).float()
    masks = F.interpolate(masks, size)
    query = torch.randn(batch, 3, *size, generator=generator)
    return images, masks, query, torch.randint(1, CLASSES, (batch,), generator=generator)


# ---- The published forward


@pytest.mark.parametrize("base", [True, False])
@pytest.mark.parametrize(
    ("batch", "shots", "size"), [(1, 1, (64, 64)), (3, 2, (81, 49))], ids=["one", "batch"]
)
@torch.no_grad()
def test_successive_calls_equal_the_published_forward(
    batch: int, shots: int, size: tuple[int, int], base: bool
) -> None:
    segmenter, reference = model(base=base), model(base=base)
    for call in range(3):
        images, masks, query, labels = episode(batch, shots, size, seed=call)
        wanted = published_forward(reference, images, masks, query, labels)
        task = segmenter.encode_support(images, masks, labels)
        assert_close(segmenter.classify(query, task).full, wanted)
        for row, its in zip(rows(segmenter), rows(reference), strict=True):
            assert_close(row, its)


def test_the_closed_form_equals_the_moves_one_by_one() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(8, generator=generator, dtype=torch.float64)
    proxies = torch.randn(5, 8, generator=generator, dtype=torch.float64)
    row, before = start, []
    for proxy in proxies:
        before.append(row)
        row = ALPHA * proxy + (1 - ALPHA) * row
    assert_close(moved(start, proxies, ALPHA), row)
    assert_close(moved_in_turn(start, proxies, ALPHA), torch.stack(before))


@torch.no_grad()
def test_running_rows_depend_on_what_came_before_and_episodes_do_not() -> None:
    images, masks, query, labels = episode(batch=2)
    for background, same in (("running", False), ("episode", True)):
        segmenter = model(background=background)
        before = rows(segmenter)
        alone = segmenter.encode_support(images[1:], masks[1:], labels[1:])
        wanted = segmenter.segment(query[1:], alone).logits
        segmenter.encode_support(images[:1], masks[:1], labels[:1])
        task = segmenter.encode_support(images[1:], masks[1:], labels[1:])
        found = segmenter.segment(query[1:], task).logits
        assert torch.allclose(found, wanted, atol=1e-5) == same
        kept = [torch.equal(a, b) for a, b in zip(rows(segmenter), before, strict=True)]
        assert kept == [same] * 3


@torch.no_grad()
def test_items_of_a_batch_are_independent_in_episodes_alone() -> None:
    images, masks, query, labels = episode(batch=3, shots=2)
    for background, same in (("running", False), ("episode", True)):
        segmenter, other = model(background=background), model(background=background)
        task = segmenter.encode_support(images, masks, labels)
        together = segmenter.segment(query, task).logits
        first = other.encode_support(images[:1], masks[:1], labels[:1])
        alone = other.segment(query[:1], first).logits
        # Published with the base classes: all queries share the row after the last item.
        assert torch.allclose(together[:1], alone, atol=1e-5) == same
        if same:
            for item in range(1, 3):
                one = slice(item, item + 1)
                task = segmenter.encode_support(images[one], masks[one], labels[one])
                assert_close(together[one], segmenter.segment(query[one], task).logits)


@pytest.mark.parametrize("background", ["running", "episode"])
@torch.no_grad()
def test_shots_fitted_apart_and_merged_equal_shots_fitted_together(background: str) -> None:
    images, masks, query, _ = episode(shots=3)
    segmenter, other = model(background=background), model(background=background)
    together = segmenter.encode_support(images, masks)
    apart = [other.encode_support(images[:, k : k + 1], masks[:, k : k + 1]) for k in range(3)]
    merged = apart[0].merge(*apart[1:])
    assert merged.tensors.keys() == together.tensors.keys()
    for name, tensor in together.tensors.items():
        assert_close(merged.tensors[name], tensor)
    wanted = segmenter.segment(query, together).logits
    assert_close(other.segment(query, merged).logits, wanted)
    assert merged.remove(1).shots == 2


# ---- One's own images


def test_fit_and_predict_leave_the_model_as_it_is_and_repeat() -> None:
    segmenter = known(model(size=48))
    assert segmenter.background == "running"
    image, mask = picture(50, 70)
    before = rows(segmenter)
    task = segmenter.fit([(image, mask)] * 2)
    query, _ = picture(41, 77)
    first = segmenter.predict(query, task)
    assert first.labels.shape == (41, 77)
    for _ in range(3):
        assert np.array_equal(segmenter.predict(query, task).scores, first.scores)
    assert all(torch.equal(a, b) for a, b in zip(rows(segmenter), before, strict=True))
    again = segmenter.fit([(image, mask)] * 2)
    assert np.array_equal(segmenter.predict(query, again).scores, first.scores)


def test_a_task_is_accepted_and_predicts_the_same_after_the_row_has_moved() -> None:
    segmenter = known(model(size=48))
    image, mask = picture(50, 70)
    task = segmenter.fit([(image, mask)], label=2)
    wanted = segmenter.predict(image, task).scores
    images, masks, _, _ = episode(batch=2, shots=2)
    with torch.no_grad():
        segmenter.encode_support(images, masks)
    assert np.array_equal(segmenter.predict(image, task).scores, wanted)
    with torch.no_grad():
        segmenter.fully_conv[0].weight.add_(0.1)
    with pytest.raises(ValueError, match="task: expected a task with weights"):
        segmenter.predict(image, task)


def test_paths_and_saved_tasks_give_the_same(tmp_path: Path) -> None:
    segmenter = known(model(size=48))
    image, mask = picture(50, 70)
    image.save(tmp_path / "photo.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    task = segmenter.fit([(tmp_path / "photo.png", tmp_path / "mask.png")], name="box")
    again = segmenter.fit([(np.asarray(image), mask > 0)], name="box")
    for name, tensor in task.tensors.items():
        assert torch.equal(again.tensors[name], tensor)
    task.save(tmp_path / "task.safetensors")
    loaded = Task.load(tmp_path / "task.safetensors")
    wanted = segmenter.predict(image, task).scores
    assert np.array_equal(segmenter.predict(image, loaded).scores, wanted)


# ---- Labels and ways


@pytest.mark.parametrize("base", [True, False])
@torch.no_grad()
def test_without_a_label_the_class_has_a_row_of_its_own(base: bool) -> None:
    segmenter = model(background="episode", base=base)
    images, masks, query, labels = episode(batch=2)
    full = segmenter.classify(query, segmenter.encode_support(images, masks)).full
    output = segmenter.classify(query, segmenter.encode_support(images, masks, labels))
    assert full.shape[1] == (CLASSES + 1 if base else 2)
    own = output.full.gather(1, output.places[:, :, None, None].expand(-1, -1, *full.shape[2:]))
    assert_close(full[:, -1:], own)
    if base:
        replaced = labels[:, None] == torch.arange(CLASSES)
        assert_close(full[:, :CLASSES][~replaced], output.full[~replaced])


@torch.no_grad()
def test_ways_compete_and_share_one_encoding() -> None:
    segmenter = model(background="episode")
    images, masks, query, labels = episode()
    tasks = [
        segmenter.encode_support(images, masks, labels),
        segmenter.encode_support(images, 1 - masks),
    ]
    calls: list[int] = []
    segmenter.encoder.register_forward_hook(lambda *_: calls.append(1))
    prediction = segmenter.segment(query, tasks)
    assert len(calls) == 1
    assert prediction.logits.shape == (1, 3, 64, 64)
    best = prediction.margins.argmax(1) + 1
    assert torch.equal(prediction.labels, torch.where(prediction.margins.amax(1) > 0, best, 0))
    # The background's row is moved by both tasks' shots in turn.
    for level in (1, 2, 3):
        row = tasks[0].tensors[f"start{level}"][:, 0]
        for task in tasks:
            row = ALPHA * task.tensors[f"background{level}"][:, 0] + (1 - ALPHA) * row
        assert_close(segmenter.background_row(tasks, level)[:, 0], row)


# ---- Checkpoints


def published(segmenter: AMP) -> dict[str, Tensor]:
    """The model's tensors under all of their published names, the later ones in force."""
    tensors = {
        AMP.published_keys.to_published(name): t for name, t in segmenter.state_dict().items()
    }
    blocks = {"conv1": "level1.0", "conv2": "level1.2", "conv3": "level1.4"}
    blocks |= {"conv4": "level2.0", "conv5": "level3.0", "fully_conv": "level3.2"}
    aliases = {}
    for key, tensor in tensors.items():
        block, _, rest = key.partition(".")
        if block in blocks:
            aliases[f"{blocks[block]}.{rest}"] = tensor
            tensors[key] = torch.zeros_like(tensor)
    return {**tensors, **aliases}


@pytest.fixture(scope="module")
def vgg() -> AMP:
    torch.manual_seed(0)
    return AMP(create_encoder("amp_vgg16_bn"))


@pytest.mark.parametrize("names", ["both", "reversed", "levels only"])
def test_published_files_load_and_the_names_under_levels_count(
    vgg: AMP, names: str, tmp_path: Path
) -> None:
    tensors = published(vgg)
    assert len(tensors) == 189
    if names == "reversed":
        tensors = dict(reversed(tensors.items()))
    elif names == "levels only":
        tensors = {key: t for key, t in tensors.items() if key.startswith("level")}
    torch.save({"model": tensors}, tmp_path / "best_model.bin")
    made = fastfss.create_model("amp", encoder="amp_vgg16_bn", weights=tmp_path / "best_model.bin")
    for name, tensor in vgg.state_dict().items():
        assert torch.equal(made.state_dict()[name], tensor), name


def test_a_saved_model_holds_each_tensor_once_and_comes_back(tmp_path: Path) -> None:
    segmenter = model()
    segmenter.save(tmp_path / "model.safetensors")
    held = fastfss.weights.read_checkpoint(tmp_path / "model.safetensors")
    assert held.keys() == segmenter.state_dict().keys()
    made = fastfss.create_model(
        "amp",
        encoder="resnet18",
        layers=LAYERS,
        weights=tmp_path / "model.safetensors",
        classes=CLASSES,
        depth=48,
    )
    for name, tensor in segmenter.state_dict().items():
        assert torch.equal(made.state_dict()[name], tensor), name


# ---- Training


def test_a_training_step_segments_and_reaches_the_head_alone() -> None:
    segmenter = model().train()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, CLASSES, (2, 64, 64), generator=torch.Generator().manual_seed(1))
    labels[:, :9] = 255
    before = rows(segmenter)
    logits = segmenter(images)
    assert logits.shape == (2, CLASSES, 8, 8)
    loss = segmenter.loss(logits, labels)
    wanted = F.cross_entropy(upsample(logits, (64, 64))[:, :, 9:], labels[:, 9:])
    assert_close(loss, wanted)
    loss.backward()
    moved_names = {n for n, p in segmenter.named_parameters() if p.grad is not None}
    assert moved_names == {n for n in segmenter.state_dict() if not n.startswith("encoder.")}
    assert all(torch.equal(a, b) for a, b in zip(rows(segmenter), before, strict=True))


@pytest.mark.parametrize("batch_statistics", [True, False])
def test_batch_norms_follow_the_option(batch_statistics: bool) -> None:
    segmenter = model(batch_statistics=batch_statistics).train()
    before = segmenter.encoder.bn1.running_mean.clone()
    segmenter(torch.randn(2, 3, 64, 64))
    assert torch.equal(segmenter.encoder.bn1.running_mean, before) != batch_statistics


# ---- Copies and wrong input


@torch.no_grad()
def test_the_copy_for_inference_agrees_in_float32_and_nearly_in_bfloat16() -> None:
    segmenter = model()
    images, masks, query, labels = episode(shots=2)
    fast, small = segmenter.for_inference(), segmenter.for_inference(dtype=torch.bfloat16)
    before = rows(segmenter)
    found = fast.segment(query, fast.encode_support(images, masks, labels))
    # The copy moves rows of its own.
    assert all(torch.equal(a, b) for a, b in zip(rows(segmenter), before, strict=True))
    wanted = segmenter.segment(query, segmenter.encode_support(images, masks, labels))
    assert_close(found.logits, wanted.logits)
    task = small.encode_support(images.bfloat16(), masks, labels)
    prediction = small.segment(query.bfloat16(), task)
    error = (prediction.logits.float() - wanted.logits).norm() / wanted.logits.norm()
    assert error < 0.05  # 8 bits through 20 convolutions


def test_running_rows_can_be_moved_in_inference_mode() -> None:
    images, masks, _, _ = episode()
    segmenter, other = model(), model()
    with torch.inference_mode():
        segmenter.encode_support(images, masks)
    with torch.no_grad():
        other.encode_support(images, masks)
    for row, wanted in zip(rows(segmenter), rows(other), strict=True):
        assert torch.equal(row, wanted)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": ("layer2", "layer3")}, "layers: expected three names"),
        ({"layers": ("layer2", "layer3", "layer9")}, "no feature map 'layer9'"),
        ({"classes": 1}, "classes: expected at least 2"),
        ({"background": "never"}, 'background: expected "running" or "episode", got \'never\''),
        ({"alpha": 0.0}, "alpha: expected a number above 0"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model(**options)


def test_wrong_supports_queries_and_tasks_are_named() -> None:
    segmenter = model()
    images, masks, query, _ = episode(shots=2)
    with pytest.raises(ValueError, match="images: expected the same size in all shots, got 64 x"):
        segmenter.encode_support([images[:, 0], images[:, 1, :, 1:]], masks)
    with pytest.raises(ValueError, match=r"labels: expected class ids of 1 to 5, got \[6\]"):
        segmenter.encode_support(images, masks, 6)
    with torch.no_grad():
        task = segmenter.encode_support(images, masks)
        other = model(depth=32)
        with pytest.raises(ValueError, match="task: expected start3 of 32 channels"):
            other.segment(query, task)
        with pytest.raises(ValueError, match=r"query: expected \(B, 3, H, W\)"):
            segmenter.segment(query[0], task)
        with pytest.raises(ValueError, match="task: expected a task of method 'amp'"):
            segmenter.segment(query, Task("denet", dict(task.tensors)))
        with pytest.raises(ValueError, match=r"others: expected tasks that hold .*, got one that"):
            task.merge(segmenter.encode_support(images, masks, 2))
