"""A query's map kept for clicks: only how guidance is multiplied changes."""

from __future__ import annotations

import copy

import pytest
import torch

from fastfss import Task, create_model
from fastfss.methods.guided_parts import PairHead
from tests.methods.guided_networks import network, pictures, points
from tests.tolerances import assert_close


@pytest.mark.parametrize("batch, sizes", [(1, [(97, 129)]), (2, [(70, 101), (70, 101)])])
@torch.no_grad()
def test_a_map_that_is_kept_for_clicks_changes_only_how_guidance_is_multiplied(
    batch: int, sizes: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network("cofeat-late-lite").for_inference()
    shots = [model.encode(one) for one in pictures(*sizes, batch=batch)]
    labels = [points(size, 0, 1, batch=batch, seed=n) for n, size in enumerate(sizes)]
    query = model.encode(pictures((75, 110), batch=batch, seed=1)[0])
    wanted = model.segment_from(query, model.support_from(shots, labels))
    task = model.support_from([model.for_clicks(shot) for shot in shots], labels)
    plain = Task(task.method, {key: one.clone() for key, one in task.tensors.items()})
    assert_close(model.segment_from(query, plain).logits, wanted.logits)
    with monkeypatch.context() as patch:  # the large weights are not read
        patch.setattr(PairHead, "of_guidance", None)
        assert_close(model.segment_from(query, task).logits, wanted.logits)
        assert_close(model.segment_from(query, [task, task]).logits[:, :2], wanted.logits)
    merged = task.merge(plain)
    assert_close(model.segment_from(query, merged).logits, wanted.logits)


@torch.no_grad()
def test_other_weights_of_the_head_do_not_meet_what_was_kept() -> None:
    model = copy.deepcopy(network("cofeat-late-lite"))
    (image,) = pictures((97, 129))
    features = model.for_clicks(model.encode(image))
    task = model.support_from([features], [points((97, 129), 0, 1)])
    before = model.segment_from(features, task).logits
    model.head.fc7.weight.mul_(-1)
    found = model.segment_from(model.encode(image), task).logits
    plain = Task(task.method, {key: one.clone() for key, one in task.tensors.items()})
    assert_close(found, model.segment_from(model.encode(image), plain).logits)
    assert not torch.allclose(found, before)


@torch.no_grad()
def test_a_map_larger_than_the_weights_is_not_kept() -> None:
    model = create_model("guided-late", encoder="resnet18", layers=("layer1",))
    features = model.encode(torch.zeros(1, 3, 65, 65))
    assert model.for_clicks(features) is features
    unshared = network("cofeat-late-lite-unshared")
    encoded = unshared.encode(*pictures((97, 129)))
    assert unshared.for_clicks(encoded) is encoded
