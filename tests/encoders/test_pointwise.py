from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastfss.encoders import create_encoder
from fastfss.encoders.pointwise import (
    PointwiseConv2d,
    PointwiseLinear,
    linear,
    pointwise,
    use_pointwise_,
)
from tests.tolerances import assert_close


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def assert_agree(found: Tensor, wanted: Tensor, leaves: tuple[Tensor, ...]) -> None:
    """Values, and gradients of the leaves."""
    assert_close(found, wanted)
    gradients = [torch.autograd.grad(one.square().sum(), leaves) for one in (found, wanted)]
    for one, other in zip(*gradients, strict=True):
        assert_close(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_values_and_gradients_are_those_of_a_convolution(threads, dtype):
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(*shape, generator=generator).to(dtype).requires_grad_()
        for shape in ((2, 5, 7, 6), (4, 5, 1, 1), (4,))
    )
    found, wanted = pointwise(x, weight, bias), F.conv2d(x, weight, bias)
    assert_agree(found, wanted, (x, weight, bias))


def test_one_thread_leaves_float32_to_onednn(threads, monkeypatch):
    dilations = []
    real = F.conv2d
    monkeypatch.setattr(
        F, "conv2d", lambda *args, dilation: (dilations.append(dilation), real(*args))[1]
    )
    for dtype in (torch.float32, torch.bfloat16):
        pointwise(torch.zeros(1, 3, 2, 2, dtype=dtype), torch.zeros(4, 3, 1, 1, dtype=dtype))
    assert dilations == [2 if threads == 1 else 1, 1]


@pytest.mark.parametrize("shape", [(2, 50, 6), (70, 6), (4, 3, 6), (0, 6), (2, 40, 3, 6)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_values_and_gradients_are_those_of_a_linear_layer(threads, dtype, shape):
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(*one, generator=generator).to(dtype).requires_grad_()
        for one in (shape, (4, 6), (4,))
    )
    found, wanted = linear(x, weight, bias), F.linear(x, weight, bias)
    assert found.shape == wanted.shape and found.dtype == dtype
    assert_agree(found, wanted, (x, weight, bias))


@torch.no_grad()
def test_many_rows_of_a_linear_layer_go_to_onednn_where_there_is_one(threads, monkeypatch):
    calls = []
    real = F.conv2d
    monkeypatch.setattr(F, "conv2d", lambda *args, **given: (calls.append(1), real(*args))[1])
    layer = nn.Sequential(nn.Linear(3, 5))
    use_pointwise_(layer)
    assert type(layer[0]) is PointwiseLinear
    for rows in (64, 63):
        layer(torch.zeros(rows, 3))
    assert len(calls) == 1
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    layer(torch.zeros(64, 3))
    assert len(calls) == 1
    monkeypatch.undo()
    graph = torch.export.export(layer.eval(), (torch.zeros(64, 3),)).graph
    assert not any("conv" in str(node.target) for node in graph.nodes)


@torch.no_grad()
def test_only_plain_pointwise_convolutions_change_their_class():
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(4, 8, 1),
        nn.Conv2d(8, 8, 1, groups=2),
        nn.Conv2d(8, 8, 1, stride=2),
        nn.Conv2d(8, 8, 1, padding=1),
        nn.Conv2d(8, 8, 3),
    )
    fast = copy.deepcopy(module)
    use_pointwise_(fast)
    assert [type(part) is PointwiseConv2d for part in fast] == [True, False, False, False, False]
    assert list(fast.state_dict()) == list(module.state_dict())
    x = torch.randn(2, 4, 9, 9)
    assert_close(fast(x), module(x))


def test_folded_encoders_use_it_and_the_original_does_not():
    encoder = create_encoder("resnet50")
    folded = encoder.fold_batch_norm()
    assert type(folded.layer1[0].conv1) is PointwiseConv2d
    assert type(encoder.layer1[0].conv1) is nn.Conv2d


@torch.no_grad()
def test_a_graph_for_another_machine_has_no_dilation(threads):
    module = nn.Sequential(nn.Conv2d(4, 8, 1))
    use_pointwise_(module)
    graph = torch.export.export(module.eval(), (torch.zeros(1, 4, 5, 5),)).graph
    calls = [node for node in graph.nodes if "conv2d" in str(node.target)]
    assert len(calls) == 1
    assert [2, 2] not in calls[0].args
