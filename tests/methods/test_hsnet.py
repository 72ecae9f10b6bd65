from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import fastfss
from fastfss import HSNet, Task, create_encoder
from fastfss.methods.hypercorrelation import GroupNorm4d, Level
from tests.methods.episodes import episode, picture
from tests.methods.published_hsnet import published_learner, published_predict
from tests.published import hsnet_correlation
from tests.tolerances import assert_close


@pytest.fixture(scope="module")
def network() -> HSNet:
    """Random weights, the last bias such that both labels occur."""
    torch.manual_seed(0)
    model = HSNet(create_encoder("blocks_resnet50")).eval()
    images, masks, query = episode(shots=3, size=97)
    with torch.no_grad():
        shots = model.shot_logits(
            model.encode(query), [model.encode_support(images, masks)], (97, 97)
        )[0]
        last = model.hpn_learner.decoder2[-1]
        assert isinstance(last, torch.nn.Conv2d) and last.bias is not None
        # In the widest gap near the median: no pixel is so close that rounding decides its label.
        sorted_pixels = (shots[:, :, 1] - shots[:, :, 0]).flatten().sort().values
        middle = sorted_pixels[len(sorted_pixels) * 2 // 5 : len(sorted_pixels) * 3 // 5]
        widest = middle.diff().argmax()
        last.bias[1] -= middle[widest : widest + 2].mean()
    return model


@torch.no_grad()
def test_a_batch_gives_what_its_episodes_give_alone(network: HSNet) -> None:
    images, masks, query = episode(batch=2, shots=2, size=97)
    task = network.encode_support(images, masks)
    together = network.shot_logits(network.encode(query), [task], (97, 97))[0]
    for item in range(2):
        one = network.encode_support(images[item : item + 1], masks[item : item + 1])
        alone = network.shot_logits(network.encode(query[item : item + 1]), [one], (97, 97))[0]
        assert_close(together[item : item + 1], alone)


@torch.no_grad()
@pytest.mark.parametrize("memory_mib", [1, 256])
def test_labels_are_the_published_ones(network: HSNet, memory_mib: int) -> None:
    images, masks, query = episode(shots=3, size=97)
    network.memory_mib = memory_mib
    task = network.encode_support(images, masks)
    wanted = published_predict(network, list(images.unbind(1)), list(masks.unbind(1)), query)
    assert torch.equal(network.segment(query, task).labels, wanted)
    assert 0 < wanted.float().mean() < 1


@torch.no_grad()
def test_shots_fitted_apart_and_merged_equal_shots_fitted_together(network: HSNet) -> None:
    images, masks, query = episode(shots=3, size=97)
    together = network.encode_support(images, masks)
    apart = [network.encode_support(images[:, k : k + 1], masks[:, k : k + 1]) for k in range(3)]
    merged = apart[0].merge(*apart[1:])
    assert torch.equal(
        network.segment(query, merged).labels, network.segment(query, together).labels
    )


@torch.no_grad()
def test_half_of_the_most_votes_is_enough(network: HSNet) -> None:
    votes = torch.tensor([[0, 1, 2, 3, 4]])
    shots = torch.zeros(1, 4, 2, 1, 5)
    for shot in range(4):
        shots[0, shot, 1, 0] = torch.where(shot < votes[0], 1.0, -1.0)
    pair = network.fused(shots)
    assert (pair[:, 1] > pair[:, 0]).long().tolist() == [[[0, 0, 1, 1, 1]]]


@torch.no_grad()
def test_mean_fusion_is_the_mean_of_the_shots() -> None:
    torch.manual_seed(0)
    model = HSNet(create_encoder("blocks_resnet50"), fusion="mean").eval()
    images, masks, query = episode(shots=2, size=97)
    task = model.encode_support(images, masks)
    shots = model.shot_logits(model.encode(query), [task], (97, 97))[0]
    assert_close(model.segment(query, task).logits, shots.mean(dim=1))


@torch.no_grad()
def test_ways_share_one_encoding(network: HSNet) -> None:
    images, masks, query = episode(shots=1, size=97)
    others, other_masks, _ = episode(shots=2, seed=1, size=97)
    tasks = [network.encode_support(images, masks), network.encode_support(others, other_masks)]
    calls = []
    hook = network.encoder.register_forward_hook(lambda *_: calls.append(1))
    both = network.segment(query, tasks)
    hook.remove()
    assert len(calls) == 1
    for way, task in enumerate(tasks):
        assert_close(both.margins[:, way : way + 1], network.segment(query, task).margins)


@pytest.mark.parametrize("size", [(97, 97), (65, 129)])
def test_the_learner_in_parts_equals_the_whole_and_the_published(
    network: HSNet, size: tuple[int, int]
) -> None:
    generator = torch.Generator().manual_seed(0)
    image, other = torch.randn(2, 1, 3, *size, generator=generator)
    query, support = network.maps(image), network.maps(other)
    levels = [
        Level([query[n] for n in names], [support[n] for n in names]) for names in network.levels
    ]
    published = published_learner(
        network.hpn_learner,
        [hsnet_correlation(list(one.queries), list(one.supports)) for one in levels],
    )
    with torch.enable_grad():
        whole = network.hpn_learner(*levels).detach()
    with torch.no_grad():
        parts = network.hpn_learner(*levels)
    assert_close(whole, published)
    assert_close(parts, published)


@torch.no_grad()
@pytest.mark.parametrize("area", [(slice(2, 4), slice(5, 6)), (slice(0, 0), slice(0, 0))])
def test_what_is_outside_of_the_object_need_not_be_computed(
    network: HSNet, area: tuple[slice, slice]
) -> None:
    generator = torch.Generator().manual_seed(0)
    mask = torch.zeros(2, 9, 8)
    mask[0][area] = 0.5
    mask[1, 3:7, 6:] = mask[0].any()
    queries = [torch.randn(2, 16, 9, 8, generator=generator) for _ in range(4)]
    supports = [torch.randn(2, 16, 9, 8, generator=generator) * mask[:, None] for _ in range(4)]
    conv, norm = network.hpn_learner.encoder_layer2[:2]
    whole = norm(conv(Level(queries, supports).correlations())).relu()
    found = conv.normed(Level(queries, supports, mask), norm)
    assert_close(found, whole)


def test_group_norm_is_torchs() -> None:
    norm = GroupNorm4d(4, 8)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(2, 8, 3, 4, 5, 2, generator=torch.Generator().manual_seed(0)) + 3
    wanted = torch.nn.functional.group_norm(x.double(), 4, norm.weight.double(), norm.bias.double())
    assert_close(norm(x).detach(), wanted.detach(), dtype=torch.float32)
    with torch.no_grad():
        assert_close(norm(x.clone()), wanted, dtype=torch.float32)


def test_training_reaches_the_learner_alone() -> None:
    torch.manual_seed(0)
    model = HSNet(create_encoder("blocks_resnet50")).train()
    images, masks, query = episode(batch=2, size=97)
    masks = torch.ones_like(masks)  # a stride over the support may skip a smaller object
    mask = torch.zeros(2, 97, 97)
    mask[:, 20:60, 20:60] = 1
    mask[:, :5] = 255
    loss = model.loss(model(images, masks, query), mask)
    loss.backward()
    assert all(p.grad is None for p in model.encoder.parameters())
    still = [n for n, p in model.hpn_learner.named_parameters() if not p.grad.abs().sum() > 0]
    assert not still
    without = torch.where(mask == 255, 0, mask)
    assert_close(loss, model.loss(model(images, masks, query), without))


@pytest.mark.filterwarnings("ignore:the head of HSNet")
def test_other_encoders_train_and_predict() -> None:
    torch.manual_seed(0)
    model = HSNet(create_encoder("resnet18"), size=96)
    images, masks, query = episode(size=96)
    model.loss(model(images, masks, query), masks[:, 0]).backward()
    result = model.eval().predict(np.zeros((50, 70, 3), np.uint8), model.fit([picture()]))
    assert result.labels.shape == (50, 70)


@pytest.mark.filterwarnings("ignore:the head of HSNet")
def test_a_saved_model_comes_back_head_and_all(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = fastfss.create_model("hsnet", encoder="resnet18", size=64)
    model.save(tmp_path / "model.safetensors")
    torch.manual_seed(1)
    again = fastfss.create_model(
        "hsnet", encoder="resnet18", size=64, weights=tmp_path / "model.safetensors"
    )
    assert again.fingerprint() == model.fingerprint()
    task = model.fit([picture()])
    task.save(tmp_path / "task.safetensors")
    query, _ = picture(71, 53)
    wanted = model.predict(query, task)
    found = again.predict(query, Task.load(tmp_path / "task.safetensors"))
    assert np.array_equal(found.scores, wanted.scores)


@pytest.mark.filterwarnings("default")
def test_an_encoder_file_leaves_the_head_random_and_says_so(tmp_path: Path) -> None:
    torch.save(create_encoder("resnet18").state_dict(), tmp_path / "encoder.pth")
    model = fastfss.create_model("hsnet", encoder="resnet18", weights=tmp_path / "encoder.pth")
    with pytest.warns(UserWarning, match="the head of HSNet has random weights"):
        model.fit([picture()])


@torch.no_grad()
def test_the_copy_for_inference_agrees(network: HSNet) -> None:
    images, masks, query = episode(size=97)
    fast = network.for_inference()
    task = fast.encode_support(images, masks)
    wanted = network.segment(query, network.encode_support(images, masks)).logits
    assert_close(fast.segment(query, task).logits / 5, wanted / 5)
    low = network.for_inference(dtype=torch.bfloat16)
    task = low.encode_support(images.bfloat16(), masks)
    found = low.segment(query.bfloat16(), task).logits.float()
    assert (found - wanted).norm() < 0.1 * wanted.norm()


def test_shots_share_the_memory_that_is_left_to_them() -> None:
    model = HSNet(create_encoder("resnet18"), memory_mib=256)
    for mib, on_gpu, on_cpu in ((110, 2, 1), (300, 1, 1), (20, 12, 3)):
        assert model.together(mib << 20, on_cpu=False) == on_gpu
        assert model.together(mib << 20, on_cpu=True) == on_cpu


def test_wrong_arguments_are_named(network: HSNet) -> None:
    encoder = create_encoder("resnet18")
    with pytest.raises(ValueError, match="layers: expected maps at strides 8, 16 and 32"):
        HSNet(encoder, layers=("layer2", "layer3"))
    with pytest.raises(ValueError, match="fusion: expected one of vote, mean, got 'max'"):
        HSNet(encoder, fusion="max")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="memory_mib: expected at least 1"):
        HSNet(encoder, memory_mib=0)
    images, masks, query = episode(size=97)
    with pytest.raises(ValueError, match="images: expected the same size in all shots"):
        network.encode_support([images[:, 0], images[:, 0, :, :64]], [masks[:, 0], masks[:, 0]])
    other = HSNet(encoder)
    with pytest.raises(ValueError, match=r"task: expected a map \(B, K, 512, h, w\) of layer2\.0"):
        network.segment(query, other.encode_support(images, masks))
    two_shots, two_masks, _ = episode(shots=2, size=97)
    with pytest.raises(ValueError, match="images: expected one shot"):
        network(two_shots, two_masks, query)
