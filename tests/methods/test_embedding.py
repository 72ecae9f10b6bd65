"""What holds of CANet and PGNet alike."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import fastfss
from fastfss import CANet, PGNet, Task, create_encoder, create_model
from fastfss.methods.embedding import EmbeddingSegmenter
from tests.tolerances import assert_close

METHODS = pytest.mark.parametrize("method", [CANet, PGNet])
Method = type[CANet] | type[PGNet]


def model(method: Method, **options: object) -> CANet | PGNet:
    """In evaluation mode, on a ResNet-18, with weights by which every part of the head counts.

    PyTorch's own would let the signal die out: two refinements would differ by rounding alone.
    """
    torch.manual_seed(0)
    segmenter = method(create_encoder("resnet18"), **options)  # type: ignore[arg-type]
    for name, part in segmenter.named_modules():
        if isinstance(part, nn.Conv2d) and not name.startswith("encoder."):
            nn.init.kaiming_normal_(part.weight)
            nn.init.normal_(part.bias, std=0.05)
            if name.endswith(("theta", "phi")):  # else attention is one position's
                part.weight.data.mul_(0.1)
    return segmenter.eval()


def episode(
    batch: int = 1, shots: int = 1, size: tuple[int, int] = (65, 81), seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Images (B, K, 3, H, W), masks (B, K, H, W) of another object each, queries (B, 3, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(batch, shots, 3, *size, generator=generator)
    masks = torch.zeros(batch, shots, *size)
    for index, mask in enumerate(masks.flatten(0, 1)):
        mask[10 + index : 40, 12 : 50 + 3 * index] = 1
    return images + masks.unsqueeze(2), masks, torch.randn(batch, 3, *size, generator=generator)


@METHODS
@torch.no_grad()
def test_a_batch_gives_what_its_episodes_give_alone(method: Method) -> None:
    segmenter = model(method)
    images, masks, query = episode(batch=3, shots=2)
    together = segmenter.segment(query, segmenter.encode_support(images, masks)).logits
    for item in range(3):
        task = segmenter.encode_support(images[item : item + 1], masks[item : item + 1])
        alone = segmenter.segment(query[item : item + 1], task).logits
        assert_close(together[item : item + 1], alone)


@METHODS
@torch.no_grad()
def test_one_task_serves_a_batch_of_queries(method: Method) -> None:
    segmenter = model(method)
    images, masks, _ = episode(shots=2)
    query = episode(batch=3)[2]
    task = segmenter.encode_support(images, masks)
    together = segmenter.segment(query, task).logits
    alone = [segmenter.segment(one, task).logits for one in query.split(1)]
    assert_close(together, torch.cat(alone))


@METHODS
@torch.no_grad()
def test_shots_fitted_apart_and_merged_equal_shots_fitted_together(method: Method) -> None:
    segmenter = model(method)
    images, masks, query = episode(shots=3)
    together = segmenter.encode_support(images, masks)
    apart = [segmenter.encode_support(images[:, k : k + 1], masks[:, k : k + 1]) for k in range(3)]
    expected = segmenter.segment(query, together).logits
    assert_close(segmenter.segment(query, apart[0].merge(*apart[1:])).logits, expected)
    two = segmenter.encode_support(images[:, :2], masks[:, :2])
    expected = segmenter.segment(query, two).logits
    assert_close(segmenter.segment(query, together.remove(2)).logits, expected)


@METHODS
@torch.no_grad()
def test_ways_of_different_shots_share_one_encoding_and_one_background(method: Method) -> None:
    segmenter = model(method)
    images, masks, query = episode(batch=2, shots=3)
    tasks = [
        segmenter.encode_support(images[:, :1], masks[:, :1]),
        segmenter.encode_support(images[:, 1:], masks[:, 1:]),
    ]
    calls = []
    segmenter.encoder.register_forward_hook(lambda *_: calls.append(1))
    both = segmenter.segment(query, tasks, output_size=(33, 47))
    assert len(calls) == 1
    pairs = [segmenter.segment(query, task, output_size=(33, 47)).logits for task in tasks]
    background = torch.stack([pair[:, 0] for pair in pairs]).amax(0)
    scores = torch.stack([background, *(pair[:, 1] for pair in pairs)], dim=1)
    assert_close(both.logits, scores)
    assert torch.equal(both.labels, both.logits.argmax(1))
    positive = (both.margins > 0).long()
    assert torch.equal(positive.sum(1), (both.labels > 0).long())


@METHODS
@torch.no_grad()
def test_masks_may_have_another_size_and_255_is_background(method: Method) -> None:
    segmenter = model(method)
    images, masks, query = episode(size=(64, 64))
    ignored = masks.clone()
    ignored[..., 50:, :] = 255
    expected = segmenter.segment(query, segmenter.encode_support(images, masks)).logits
    task = segmenter.encode_support(images, ignored)
    assert_close(segmenter.segment(query, task).logits, expected)
    large = masks.repeat_interleave(2, -1).repeat_interleave(2, -2)
    task = segmenter.encode_support(images, large)
    assert segmenter.segment(query, task).logits.shape == (1, 2, 64, 64)


@METHODS
@torch.no_grad()
def test_empty_and_full_masks_give_finite_logits(method: Method) -> None:
    segmenter = model(method)
    images, masks, query = episode()
    for value in (0, 1):
        task = segmenter.encode_support(images, torch.full_like(masks, value))
        assert segmenter.segment(query, task).logits.isfinite().all()


@METHODS
@torch.no_grad()
def test_segmenting_reads_no_values_on_the_host(method: Method) -> None:
    segmenter = model(method)
    images, masks, query = episode(shots=2)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fakes = [mode.from_tensor(tensor) for tensor in (images, masks, query)]
        task = segmenter.encode_support(*fakes[:2])
        assert segmenter.segment(fakes[2], [task, task]).logits.shape == (1, 3, 65, 81)


@METHODS
@pytest.mark.parametrize("batch_statistics", [True, False])
def test_a_training_step_moves_the_head_and_the_norms_statistics(
    method: Method, batch_statistics: bool
) -> None:
    segmenter = model(method, batch_statistics=batch_statistics).train()
    before = copy.deepcopy(segmenter.encoder)
    images, masks, query = episode(batch=2, shots=2)
    target = torch.zeros(2, 65, 81)
    target[:, 20:30, 20:50] = 1
    target[:, :4] = 255
    logits = segmenter(images, masks, query)
    assert logits.shape == (2, 2, 9, 11)
    segmenter.loss(logits, target).backward()
    head = {n for n, _ in segmenter.named_parameters() if not n.startswith("encoder.")}
    moved = {n for n, p in segmenter.named_parameters() if p.grad is not None}
    assert moved == head
    # The published order: queries, then all supports together.
    with torch.no_grad():
        for batch in (query, images.flatten(0, 1)):
            before(batch, segmenter.layers)
    state = segmenter.encoder.state_dict()
    assert all(torch.equal(state[key], value) for key, value in before.state_dict().items())
    fresh = model(method).encoder.state_dict()
    changed = not torch.equal(state["bn1.running_mean"], fresh["bn1.running_mean"])
    assert changed == batch_statistics


@METHODS
def test_the_loss_is_of_the_enlarged_logits_and_leaves_255_out(method: Method) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 2, 9, 11, generator=generator)
    target = (torch.rand(2, 30, 40, generator=generator) > 0.5).float()
    target[:, :7] = 255
    large = F.interpolate(logits, (30, 40), mode="bilinear", align_corners=True)
    expected = F.cross_entropy(large[:, :, 7:], target[:, 7:].long())
    assert_close(model(method).loss(logits, target), expected)


@METHODS
def test_training_and_evaluation_compute_the_same_without_dropout(method: Method) -> None:
    segmenter = model(method, dropout=0.0, batch_statistics=False)
    images, masks, query = episode(batch=2, shots=2)
    expected = segmenter.head(segmenter.embed(query), [segmenter.encode_support(images, masks)])
    assert_close(segmenter.train()(images, masks, query), expected[:, 0])


@METHODS
def test_fit_and_predict_bring_any_size_to_a_square(method: Method, tmp_path: Path) -> None:
    segmenter = create_model(method.method, encoder=create_encoder("resnet18"), size=64)
    segmenter.head_origin = segmenter.weights_origin = "the test"
    pixels = np.random.default_rng(0).integers(0, 255, (50, 90, 3), dtype=np.uint8)
    mask = np.zeros((50, 90), np.uint8)
    mask[10:30, 20:70] = 255
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    task = segmenter.fit([(tmp_path / "photo.png", tmp_path / "mask.png"), (pixels, mask > 0)])
    assert task.shots == 2
    for tensor in task.tensors.values():
        assert_close(tensor[:, 0], tensor[:, 1])
    seen = []
    segmenter.encoder.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    result = segmenter.predict(pixels[:37], [task, task.select([0])])
    assert seen == [(1, 3, 64, 64)]
    assert result.labels.shape == (37, 90)


@METHODS
def test_published_defaults(method: Method) -> None:
    segmenter = create_model(method.method)
    assert segmenter.encoder.name == "dilated_resnet50"
    assert segmenter.layers == ("layer2", "layer3")
    assert (segmenter.size, segmenter.frame) == (321, "square")
    assert segmenter.encoder.batch_statistics
    assert not method.info.scores


@METHODS
@torch.no_grad()
def test_a_saved_model_and_a_published_checkpoint_load_whole(
    method: Method, tmp_path: Path
) -> None:
    segmenter = model(method)
    images, masks, query = episode()
    expected = segmenter.segment(query, segmenter.encode_support(images, masks)).logits
    segmenter.save(tmp_path / "own.safetensors")
    published = {
        method.published_keys.to_published(key): value
        for key, value in segmenter.state_dict().items()
    }
    assert "backbone.layer4.0.conv1.weight" in published
    torch.save({"model": published, "epoch": torch.tensor(3)}, tmp_path / "best_model.bin")
    for name in ("own.safetensors", "best_model.bin"):
        again = create_model(method.method, encoder="resnet18", weights=tmp_path / name)
        assert again.head_origin == str(tmp_path / name)
        found = again.segment(query, again.encode_support(images, masks)).logits
        assert torch.equal(found, expected)


@METHODS
def test_an_encoder_file_with_a_classifier_is_not_taken_for_a_checkpoint(
    method: Method, tmp_path: Path
) -> None:
    network = torchvision.models.densenet121()
    torch.save(network.state_dict(), tmp_path / "densenet121.pth")
    segmenter = create_model(
        method.method, encoder="dilated_densenet121", weights=tmp_path / "densenet121.pth"
    )
    assert segmenter.head_origin == "random"
    assert torch.equal(segmenter.encoder.conv0.weight, network.features.conv0.weight)


@METHODS
@torch.no_grad()
def test_the_copy_for_inference_agrees_and_takes_the_models_tasks(method: Method) -> None:
    segmenter = model(method)
    images, masks, query = episode(batch=2, shots=2)
    task = segmenter.encode_support(images, masks)
    expected = segmenter.segment(query, task).logits
    for channels_last in (True, False):
        fast = segmenter.for_inference(channels_last=channels_last)
        assert_close(fast.segment(query, fast.encode_support(images, masks)).logits, expected)
        assert_close(fast.segment(query, task).logits, expected)
    assert fast.settings() == segmenter.settings()


@METHODS
@torch.no_grad()
def test_bfloat16_for_inference_gives_nearly_the_same_labels(method: Method) -> None:
    segmenter = model(method)
    images, masks, query = episode(shots=2)
    expected = segmenter.segment(query, segmenter.encode_support(images, masks))
    fast = segmenter.for_inference(dtype=torch.bfloat16)
    task = fast.encode_support(images.bfloat16(), masks)
    prediction = fast.segment(query.bfloat16(), [task])
    middle = expected.margins.median()
    sure = (expected.margins - middle).abs() > 0.1 * expected.margins.std()
    equal = (prediction.margins > middle) == (expected.margins > middle)
    assert equal[sure].float().mean() > 0.98


@METHODS
def test_wrong_input_is_named(method: Method) -> None:
    segmenter = model(method)
    images, masks, query = episode()
    other = PGNet if method is CANet else CANet
    with torch.no_grad():
        task = segmenter.encode_support(images, masks)
        with pytest.raises(ValueError, match=r"query: expected \(B, 3, H, W\), got \(65, 81\)"):
            segmenter.segment(query[0, 0], task)
        with pytest.raises(ValueError, match="task: expected at least one Task"):
            segmenter.segment(query, [])
        with pytest.raises(ValueError, match=f"task: expected a task of method '{method.method}'"):
            segmenter.segment(query, model(other).encode_support(images, masks))
        with pytest.raises(ValueError, match="task: expected a task of batch 1 or 1"):
            segmenter.segment(query, segmenter.encode_support(*episode(batch=2)[:2]))
        narrow = Task(task.method, {k: t[..., :7] for k, t in task.tensors.items()})
        with pytest.raises(ValueError, match=r"task: expected .* of 256 channels, got a tensor"):
            segmenter.segment(query, narrow)
        smaller, smaller_masks, _ = episode(size=(33, 33))
        with pytest.raises(ValueError, match="images: expected the same size in all shots, got 65"):
            segmenter.encode_support([images[:, 0], smaller[:, 0]], [masks[:, 0]] * 2)
        with pytest.raises(ValueError, match="masks: expected the same size in all shots, got 65"):
            segmenter.encode_support([images[:, 0]] * 2, [masks[:, 0], smaller_masks[:, 0]])
        with pytest.raises(ValueError, match="masks: expected one mask an image"):
            segmenter.encode_support(images, masks.repeat(1, 2, 1, 1))
    with pytest.raises(ValueError, match="no feature map 'layer5'"):
        model(method, layers=("layer5",))
    with pytest.raises(ValueError, match=r"no encoder 'resnet9000'"):
        create_model(method.method, encoder="resnet9000")
    with pytest.raises(TypeError, match="options: expected those of method"):
        create_model(method.method, attention=True)


def test_both_are_in_the_registry() -> None:
    assert {"canet", "pgnet"} <= set(fastfss.list_models())
    assert issubclass(CANet, EmbeddingSegmenter)
    assert issubclass(PGNet, EmbeddingSegmenter)
