"""Cue fusion: what its cues are, and how hints, presence and calibration act."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

from fastfss import create_encoder, create_model
from fastfss.methods import CueFusion
from fastfss.methods.cue_fusion import SCALE, Support, label_kinds, matching_cues, own_cues, shares
from fastfss.methods.hints import REACH, hints_of

pytestmark = pytest.mark.filterwarnings("ignore:.*random weights.*:UserWarning")


@cache
def model() -> CueFusion:
    torch.manual_seed(0)
    made = create_model("cue-fusion", size=96)
    assert isinstance(made, CueFusion)
    return made


def episode(seed: int, shots: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(2, shots, 3, 96, 80, generator=generator)
    masks = torch.zeros(2, shots, 96, 80, dtype=torch.uint8)
    masks[:, :, 20:60, 10:50] = 1
    return images, masks, torch.randn(2, 3, 72, 88, generator=generator)


def unit(x: Tensor, dim: int) -> Tensor:
    return x / x.norm(dim=dim, keepdim=True)


def test_positions_where_the_encoder_says_nothing_are_numbers_in_half() -> None:
    """1e-12, which keeps a norm from being 0, is 0 in half: 0 / 0."""
    low = model().for_inference(dtype=torch.float16)
    assert isinstance(low, CueFusion)
    with torch.no_grad():
        maps = low.encoder(torch.zeros(1, 3, 64, 64, dtype=torch.float16), low.layers)
        found = low.embedded({name: torch.zeros_like(one) for name, one in maps.items()})
    assert found["embedding"].dtype == torch.float16
    assert found["embedding"].isfinite().all()


def test_the_cues_are_what_their_formulas_say() -> None:
    generator = torch.Generator().manual_seed(1)
    query, key = (
        torch.randn(2, 6, 3, 5, generator=generator),
        torch.randn(2, 6, 7, generator=generator),
    )
    inside = torch.tensor([[1.0, 0.75, 0.25, 0, 0, 0, 0], [0.3, 0, 0, 0, 0, 0, 0]])
    outside = torch.tensor([[0, 0.25, 0.75, 1, 1, 0, 0], [0.7, 1, 1, 1, 0, 0, 0]])
    found = matching_cues(query, Support(key, inside, outside))

    positions = unit(query, 1).flatten(2).transpose(1, 2)  # (2, 15, 6)
    cosines = positions @ unit(key, 1)
    known = inside + outside
    weights = known[:, None] * (SCALE * cosines).exp()
    share = torch.where(known > 0, inside / known.clamp_min(1e-6), 0)
    transfer = (weights * share[:, None]).sum(2) / weights.sum(2)
    # Of the second shot's object the best cell has less than a half.
    of_object = torch.tensor([[1, 1, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0]]).bool()
    nearest = cosines.masked_fill(~of_object[:, None], -9).amax(2)
    background = cosines.masked_fill(~(outside > 0.5)[:, None], -9).amax(2)
    prototypes = unit(unit(key, 1) @ torch.stack([inside, outside], 2), 1)
    wanted = torch.stack([transfer, nearest, background, *(positions @ prototypes).unbind(2)], 1)
    torch.testing.assert_close(found, wanted.unflatten(2, (3, 5)), rtol=1e-4, atol=1e-5)


def test_the_querys_own_prototypes_are_of_where_the_vote_is_sure() -> None:
    query = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(2))
    vote = torch.tensor([[[[0.9, 0.1], [0.1, 0.1]]]])
    first, rest = own_cues(query, vote).unbind(1)
    flat = unit(query, 1).flatten(2)[0]
    torch.testing.assert_close(first.flatten(), flat[:, 0] @ flat, rtol=1e-4, atol=1e-5)
    other = unit(flat[:, 1:].sum(1), 0)
    torch.testing.assert_close(rest.flatten(), other @ flat, rtol=1e-4, atol=1e-5)


def test_where_all_votes_are_alike_rounding_does_not_choose() -> None:
    """As after a click on the object alone, of which the vote is 1 everywhere."""
    generator = torch.Generator().manual_seed(3)
    query = torch.randn(1, 4, 5, 7, generator=generator)
    vote = torch.ones(1, 1, 5, 7)
    rounded = vote - 6e-8 * torch.randint(0, 2, vote.shape, generator=generator)
    mean = unit(unit(query, 1).flatten(2).sum(2), 1)[0]
    wanted = (mean @ unit(query, 1).flatten(2)[0]).view(5, 7)
    for one in (vote, rounded):
        for found in own_cues(query, one)[0]:
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_ignored_pixels_belong_to_neither_share() -> None:
    mask = torch.tensor([[[1, 1, 0, 255], [1, 0, 255, 255]]], dtype=torch.uint8)
    inside, outside = shares(label_kinds(mask, torch.float32), (1, 2), torch.float32)
    assert inside.tolist() == [[[0.75, 0.0]]]
    assert outside.tolist() == [[[0.25, 0.25]]]


def test_positions_of_which_nothing_is_known_change_nothing() -> None:
    images, masks, query = episode(3)
    small = model().encode_support(images[:, :, :, :64, :64], masks[:, :, :64, :64])
    key = small.tensors["key.layer3"]
    assert not small.tensors["inside.layer3"][..., 16:].any()
    tensors = {**small.tensors, "key.layer3": key.clone()}
    tensors["key.layer3"][..., 16:] = 7.0
    other = type(small)(small.method, tensors)
    with torch.no_grad():
        wanted, found = (model().segment(query, one).logits for one in (small, other))
    torch.testing.assert_close(found, wanted)


def test_a_prediction_tells_how_probably_the_class_is_there() -> None:
    images, masks, query = episode(4, shots=2)
    task = model().encode_support(images, masks)
    with torch.no_grad():
        found = model().segment(query, [task, task])
    assert found.presence is not None
    assert found.presence.shape == (2, 2)
    assert bool(((found.presence > 0) & (found.presence < 1)).all())
    torch.testing.assert_close(found.presence[:, 0], found.presence[:, 1])


def test_calibration_moves_masks_and_presence() -> None:
    images, masks, query = episode(5)
    task, other = model().encode_support(images, masks), create_model("cue-fusion", size=96)
    other.load_state_dict(model().state_dict())
    other.calibration.copy_(torch.tensor([0.5, 2.0, 1.0]))
    with torch.no_grad():
        before, after = model().segment(query, task), other.segment(query, task)
    torch.testing.assert_close(after.margins, before.margins + 0.5)
    torch.testing.assert_close(after.presence.logit(), 2 * before.presence.logit() + 1)


def test_hints_are_near_their_marks_alone() -> None:
    said = torch.full((60, 80), 255, dtype=torch.uint8)
    said[20, 30], said[41, 61] = 1, 0
    prior = torch.full((60, 80), 0.75)
    hints = hints_of(said, (60, 80), prior)
    assert hints.shape == (1, 3, 30, 40)
    torch.testing.assert_close(hints[0, 0], torch.full((30, 40), 0.5))
    assert hints[0, 1, 10, 15] == 1
    assert hints[0, 2, 20, 30] == 1
    y, x = torch.meshgrid(torch.arange(30.0), torch.arange(40.0), indexing="ij")
    wanted = (1 - ((y - 10) ** 2 + (x - 15) ** 2).sqrt() / REACH).clamp_min(0)
    torch.testing.assert_close(hints[0, 1], wanted)
    assert not hints_of(said, (60, 80))[0, 0].any()


def test_hints_change_the_prediction_and_no_hints_are_zeros() -> None:
    images, masks, query = episode(6)
    task = model().encode_support(images, masks)
    with torch.no_grad():
        features = model().encode(query)
        plain = model().segment_from(features, task).logits
        nothing = model().segment_hinted(features, [task], [torch.zeros(2, 3, 36, 44)]).logits
        marked = model().segment_hinted(features, [task], [torch.ones(2, 3, 36, 44)]).logits
    torch.testing.assert_close(nothing, plain)
    assert not torch.allclose(marked, plain)


def test_methods_without_hints_say_so() -> None:
    ssp = create_model("ssp", encoder="resnet18", layers=("layer2",))
    assert not ssp.takes_hints
    with pytest.raises(NotImplementedError, match="takes no hints"):
        ssp.segment_hinted(None, [], [])


def test_gradients_reach_the_embedding_and_the_decoder_but_not_the_encoder() -> None:
    network = CueFusion(create_encoder("mobilenet_v2_tf"), size=96)
    images, masks, query = episode(7)
    network.segment(query, network.encode_support(images, masks)).logits.mean().backward()
    assert network.embed.weight.grad is not None
    assert network.embed.weight.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in network.encoder.parameters())


def test_other_strides_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"layers: .*strides 4, 8, 16 and 32.*layer3 \(16\)"):
        create_model("cue-fusion", layers=("layer1", "layer2", "layer3"))


def test_a_task_of_another_grid_is_refused() -> None:
    images, masks, query = episode(8)
    task = model().encode_support(images, masks)
    del task.tensors["key.layer3"]
    with pytest.raises(ValueError, match=r"task: .*key\.layer3"):
        model().segment(query, task)
