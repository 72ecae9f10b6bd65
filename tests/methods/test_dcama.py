from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import fastfss
from fastfss import DCAMA, Task, create_encoder
from fastfss.methods.dcama import position_table
from tests.methods.published_dcama import position_encoding, published_forward
from tests.methods.test_hsnet import episode, picture
from tests.tolerances import assert_close


@pytest.fixture(scope="module")
def network() -> DCAMA:
    torch.manual_seed(0)
    return DCAMA(create_encoder("blocks_resnet50")).eval()


def published(network: DCAMA, images: Tensor, masks: Tensor, query: Tensor) -> Tensor:
    return published_forward(network, list(images.unbind(1)), list(masks.unbind(1)), query)


@torch.no_grad()
@pytest.mark.parametrize(("batch", "shots", "size"), [(1, 1, 96), (2, 3, 64)])
def test_logits_are_the_published_ones(network: DCAMA, batch: int, shots: int, size: int) -> None:
    images, masks, query = episode(batch, shots, size)
    ours = network.segment(query, network.encode_support(images, masks)).logits
    assert ours.shape == (batch, 2, size, size)
    assert_close(ours, published(network, images, masks, query))


@torch.no_grad()
def test_shots_fitted_apart_and_merged_equal_shots_fitted_together(network: DCAMA) -> None:
    images, masks, query = episode(shots=2, size=64)
    apart = [network.encode_support(images[:, k : k + 1], masks[:, k : k + 1]) for k in range(2)]
    merged = network.segment(query, apart[0].merge(apart[1])).logits
    assert_close(merged, published(network, images, masks, query))


@torch.no_grad()
def test_the_supports_part_of_the_decoder_is_computed_once_for_what_it_is(network: DCAMA) -> None:
    model = copy.deepcopy(network)
    images, masks, query = episode(batch=2, shots=2, size=64)
    task = model.encode_support(images, masks)
    first = model.segment(query, task).logits
    calls = []
    skipped = model.model.skipped
    model.model.skipped = lambda skips, side: calls.append(side) or skipped(skips, side)  # type: ignore[method-assign]
    assert torch.equal(model.segment(query, task).logits, first)
    assert calls == [0]
    # Weights and tasks that change in place are not what they were.
    model.model.mixing.weight.mul_(0.5)
    changed = model.segment(query, task).logits
    assert_close(changed, published(model, images, masks, query))
    task.tensors[f"skip.{model.skips[1]}"].mul_(2)
    assert not torch.allclose(model.segment(query, task).logits, changed, rtol=1e-3)
    assert calls == [0, 0, 1, 0, 1]


@torch.no_grad()
def test_ways_share_one_encoding_of_the_query(network: DCAMA) -> None:
    images, masks, query = episode(size=64)
    others, other_masks, _ = episode(shots=2, size=64, seed=1)
    tasks = [network.encode_support(images, masks), network.encode_support(others, other_masks)]
    calls = []
    hook = network.encoder.register_forward_hook(lambda *_: calls.append(1))
    both = network.segment(query, tasks)
    hook.remove()
    assert len(calls) == 1
    for way, task in enumerate(tasks):
        assert_close(both.margins[:, way : way + 1], network.segment(query, task).margins)


def test_the_position_table_is_the_formula() -> None:
    table = position_table(32, 50, like=torch.zeros(1))
    assert (table.T - position_encoding(50, 32)).abs().max() < 1e-5


def test_training_reaches_the_head_alone_and_dropout_is_random() -> None:
    torch.manual_seed(0)
    model = DCAMA(create_encoder("resnet18"), size=64).train()
    images, masks, query = episode(size=64)
    loss = model.loss(model(images, masks, query), masks[:, 0])
    loss.backward()
    assert all(p.grad is None for p in model.encoder.parameters())
    assert all(p.grad is not None for p in model.model.parameters())
    with torch.no_grad():
        assert not torch.equal(model(images, masks, query), model(images, masks, query))
        model.eval()
        assert torch.equal(model(images, masks, query), model(images, masks, query))


def test_ignored_pixels_are_background_in_the_loss(network: DCAMA) -> None:
    logits = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, 8, 8)
    mask[:, :3] = 1
    ignored = mask.clone()
    ignored[:, 5:] = 255
    assert torch.equal(network.loss(logits, mask), network.loss(logits, ignored))


@pytest.mark.filterwarnings("ignore:the head of DCAMA")
def test_a_saved_model_comes_back_and_predicts_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = fastfss.create_model("dcama", encoder="resnet18", size=96)
    model.save(tmp_path / "model.safetensors")
    torch.manual_seed(1)
    again = fastfss.create_model(
        "dcama", encoder="resnet18", size=96, weights=tmp_path / "model.safetensors"
    )
    task = model.fit([picture(), picture(40, 64)])
    task.save(tmp_path / "task.safetensors")
    query, _ = picture(71, 53)
    wanted = model.predict(query, task)
    assert wanted.labels.shape == (71, 53)
    found = again.predict(query, Task.load(tmp_path / "task.safetensors"))
    assert np.array_equal(found.scores, wanted.scores)


@torch.no_grad()
def test_the_copy_for_inference_agrees(network: DCAMA) -> None:
    images, masks, query = episode(size=96)
    fast = network.for_inference()
    wanted = network.segment(query, network.encode_support(images, masks)).logits
    found = fast.segment(query, fast.encode_support(images, masks)).logits
    assert (found - wanted).norm() < 1e-4 * wanted.norm()
    low = network.for_inference(dtype=torch.bfloat16)
    task = low.encode_support(images.bfloat16(), masks)
    found = low.segment(query.bfloat16(), task).logits.float()
    assert (found - wanted).norm() < 0.2 * wanted.norm()


def test_swin_takes_its_one_size_and_can_be_cut() -> None:
    encoder = create_encoder("blocks_swin_b", last="stage2.1")
    assert [feature.name for feature in encoder.features] == [
        *("stage1.0", "stage1.1", "stage2.0", "stage2.1")
    ]
    assert not any(name.startswith("layers.2") for name in encoder.state_dict())
    with pytest.raises(ValueError, match="images: expected 384 x 384 for blocks_swin_b, got 96 x"):
        encoder(torch.zeros(1, 3, 96, 96))


def test_wrong_arguments_are_named(network: DCAMA) -> None:
    encoder = create_encoder("resnet18")
    with pytest.raises(ValueError, match="layers: expected maps of resnet18 at stride 32"):
        DCAMA(encoder, layers=("layer1", "layer2", "layer3"))
    with pytest.raises(ValueError, match="dropout: expected 0 <= dropout < 1, got 1"):
        DCAMA(encoder, dropout=1.0)
    images, masks, query = episode(size=64)
    with pytest.raises(ValueError, match="images: expected the same size in all shots"):
        network.encode_support([images[:, 0], images[:, 0, :, :32]], [masks[:, 0], masks[:, 0]])
    other = DCAMA(encoder)
    with pytest.raises(ValueError, match=r"task: expected key\.layer2\.0 \(B, K, 512, h, w\)"):
        network.segment(query, other.encode_support(images, masks))
