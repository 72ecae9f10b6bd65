"""Nothing on a GPU is waited for: the methods run on tensors that say they are on one, and that
have no values to look at."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException

from fastfss import create_model, list_models
from fastfss.methods.base import FewShotSegmenter
from tests.methods.options import OPTIONS

# Looks whether an object is too small for its grid.
WAITS = {"ppnet"}


def on_a_gpu(model: FewShotSegmenter) -> FewShotSegmenter:
    """With fake weights there; Module.to cannot move fake tensors."""
    for module in model.modules():
        for name, one in module._parameters.items():
            if one is not None:
                moved = torch.empty(one.shape, dtype=one.dtype, device="cuda")
                module._parameters[name] = nn.Parameter(moved, requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                moved = torch.empty(buffer.shape, dtype=buffer.dtype, device="cuda")
                module._buffers[name] = moved
    return model


def segment(name: str) -> None:
    """Two ways of two shots, by the method on a GPU."""
    with FakeTensorMode(), torch.no_grad():
        model = on_a_gpu(create_model(name, **OPTIONS.get(name, {})).eval())
        side = model.default_size if model.frame == "square" and model.default_size else 97
        images = torch.empty(1, 2, 3, side, side, device="cuda")
        masks = torch.empty(1, 2, side, side, dtype=torch.uint8, device="cuda")
        task = model.encode_support(images, masks)
        prediction = model.segment(images[:, 0], [task, task])
        assert prediction.logits.device.type == "cuda"
        assert prediction.logits.shape == (1, 3, side, side)


@pytest.mark.parametrize("name", [name for name in list_models() if name not in WAITS])
def test_neither_support_nor_query_is_waited_for(name):
    segment(name)


@pytest.mark.parametrize("name", sorted(WAITS))
def test_what_is_said_to_wait_does(name):
    with pytest.raises(DataDependentOutputException):
        segment(name)
