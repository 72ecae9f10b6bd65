from __future__ import annotations

import pytest
import torch

from fastfss import create_model, list_models
from tests.methods.options import OPTIONS
from tests.methods.test_no_waiting import WAITS


@pytest.mark.gpu
@pytest.mark.parametrize("name", [name for name in list_models() if name not in WAITS])
def test_a_replay_equals_segment(name):
    torch.manual_seed(0)
    model = create_model(name, **OPTIONS.get(name, {})).eval().cuda()
    side = model.default_size if model.frame == "square" and model.default_size else 97
    images, masks = torch.randn(1, 1, 3, side, side).cuda(), torch.zeros(1, 1, side, side).cuda()
    masks[..., 20:60, 30:70] = 1
    with torch.no_grad():
        task = model.encode_support(images, masks)
        graph = model.graphed(task, (2, 3, side, side))
        for _ in range(2):
            query = torch.randn(2, 3, side, side).cuda()
            wanted = model.segment(query, task).logits
            torch.testing.assert_close(graph(query).logits, wanted, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"query: expected \(2, 3"):
        graph(query[:1])


@pytest.mark.gpu
@pytest.mark.parametrize("name", list_models())
def test_for_inference_on_the_gpu(name):
    torch.manual_seed(0)
    model = create_model(name, **OPTIONS.get(name, {})).eval().cuda()
    side = model.default_size if model.frame == "square" and model.default_size else 97
    images, masks = torch.randn(1, 1, 3, side, side).cuda(), torch.zeros(1, 1, side, side).cuda()
    masks[..., 20:60, 30:70] = 1
    fast = model.for_inference(dtype=torch.bfloat16)
    with torch.no_grad():
        task = fast.encode_support(images.bfloat16(), masks)
        logits = fast.segment(images[:, 0].bfloat16(), task).logits
    assert logits.shape == (1, 2, side, side)
    assert logits.isfinite().all()


def test_on_the_cpu_it_says_what_it_needs():
    model = create_model("ssp", encoder="resnet18", layers=("layer2",), size=64)
    task = model.encode_support(torch.zeros(1, 1, 3, 64, 64), torch.ones(1, 1, 64, 64))
    with pytest.raises(ValueError, match=r"model: expected a model on an NVIDIA GPU.*got cpu"):
        model.graphed(task, (1, 3, 64, 64))
