"""The prototypes that PPNet keeps for the tasks that they were made of."""

from __future__ import annotations

import copy
import gc
import io
from pathlib import Path

import torch

from fastfss import Task
from fastfss.methods import GraphConfig, PartConfig
from tests.methods.test_ppnet import episode, model, pool_of, tasks_of


@torch.no_grad()
def test_prototypes_are_made_once_for_the_same_tasks() -> None:
    segmenter = model("graph", graph=GraphConfig(threshold=0.0))
    images, masks, _, _ = episode(ways=2, shots=2)
    tasks, pool = tasks_of(segmenter, images, masks), pool_of(segmenter)
    first = segmenter.prototypes(tasks)
    assert segmenter.prototypes(tasks) is first
    # As `predict` does it: the same tensors in another Task.
    assert segmenter.prototypes([task.to("cpu") for task in tasks]) is first
    others = {
        "fewer ways": segmenter.prototypes(tasks[:1]),
        "another order": segmenter.prototypes(tasks[::-1]),
        "fewer shots": segmenter.prototypes([tasks[0].select([0]), tasks[1]]),
        "merged": segmenter.prototypes([tasks[0].merge(tasks[0]), tasks[1]]),
        "unlabelled": segmenter.prototypes(tasks, pool),
    }
    assert all(other is not first for other in others.values())
    assert segmenter.prototypes(tasks, pool) is others["unlabelled"]
    for change, back in (
        ({"parts": PartConfig(alpha=0.1)}, {"parts": segmenter.parts}),
        ({"seed": 5}, {"seed": 0}),
        ({"graph": GraphConfig(blend=0.1)}, {"graph": segmenter.graph}),
    ):
        for key, value in change.items():
            setattr(segmenter, key, value)
        assert not torch.allclose(segmenter.prototypes(tasks, pool), others["unlabelled"])
        for key, value in back.items():
            setattr(segmenter, key, value)
        assert segmenter.prototypes(tasks, pool) is others["unlabelled"]
    segmenter.latentGraph.inter_w2.weight.mul_(3)
    assert not torch.allclose(segmenter.prototypes(tasks, pool), others["unlabelled"])
    tasks[1].tensors["features"].mul_(-1)
    assert not torch.allclose(segmenter.prototypes(tasks), first)


@torch.no_grad()
def test_kept_prototypes_go_with_their_tasks_and_do_not_pile_up() -> None:
    segmenter = model()
    images, masks, _, _ = episode(ways=2)
    first, second = tasks_of(segmenter, images, masks)
    for seed in range(30):
        segmenter.seed = seed
        segmenter.prototypes([first, second])
    assert len(segmenter._memo) <= 8
    segmenter.prototypes([second])
    count = len(segmenter._memo)
    del first
    gc.collect()
    assert 0 < len(segmenter._memo) < count
    del second
    gc.collect()
    assert len(segmenter._memo) == 0


@torch.no_grad()
def test_kept_prototypes_are_in_no_copy_and_no_file(tmp_path: Path) -> None:
    segmenter = model()
    images, masks, query, _ = episode()
    task = tasks_of(segmenter, images, masks)[0]
    expected = segmenter.segment(query, task).logits
    assert len(segmenter._memo) == 1
    twin = copy.deepcopy(segmenter)
    assert len(twin._memo) == 0
    assert torch.equal(twin.segment(query, task).logits, expected)
    stream = io.BytesIO()
    torch.save(segmenter, stream)
    stream.seek(0)
    loaded = torch.load(stream, weights_only=False)
    assert len(loaded._memo) == 0
    assert torch.equal(loaded.segment(query, task).logits, expected)
    task.save(tmp_path / "task.safetensors")
    again = Task.load(tmp_path / "task.safetensors")
    assert set(again.tensors) == {"vectors", "features", "regions"}
    assert torch.equal(segmenter.segment(query, again).logits, expected)


def test_prototypes_kept_without_gradient_do_not_hide_one_that_is_wanted() -> None:
    segmenter = model(layer="layer3")
    images, masks, query, _ = episode()
    with torch.no_grad():
        task = tasks_of(segmenter, images, masks)[0]
    with torch.inference_mode():
        segmenter.segment(query, task)
    # The query's encoder wants a gradient, of which inference tensors cannot be part.
    segmenter.segment(query, task).logits.sum().backward()
    weight = segmenter.encoder.get_parameter("layer3.0.conv1.weight")
    assert weight.grad is not None
    features = task.tensors["features"].requires_grad_()
    segmenter.segment(query, task).logits.sum().backward()
    assert features.grad is not None
    assert features.grad.abs().max() > 0
