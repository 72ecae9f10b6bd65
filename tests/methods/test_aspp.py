from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastfss.methods.aspp import RegASPP
from tests.methods.published_aspp import published_aspp
from tests.tolerances import assert_close

SIZES = pytest.mark.parametrize("size", [(41, 41), (9, 23), (1, 1)], ids=str)


def pyramid(**options: float) -> RegASPP:
    torch.manual_seed(0)
    return RegASPP(16, **options).eval()


def maps(batch: int, size: tuple[int, int]) -> Tensor:
    return torch.randn(batch, 16, *size, generator=torch.Generator().manual_seed(1))


@SIZES
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@torch.no_grad()
def test_the_pyramid_equals_its_published_form(size: tuple[int, int], channels_last: bool) -> None:
    aspp, x = pyramid(), maps(3, size)
    wanted = published_aspp(aspp, x)
    if channels_last:
        aspp, x = (part.to(memory_format=torch.channels_last) for part in (aspp, x))
    assert_close(aspp(x), wanted)


def test_the_keys_are_the_published_ones() -> None:
    convolutions = ["convs.0.0", "convs.1.0", "convs.2.0", "convs.3.0", "convs.4.1", "project.0"]
    wanted = [f"{name}.{leaf}" for name in convolutions for leaf in ("weight", "bias")]
    assert list(pyramid().state_dict()) == wanted


def test_gradients_equal_those_of_the_published_form() -> None:
    aspp, x = pyramid(), maps(2, (9, 11)).requires_grad_()
    weight = maps(2, (9, 11))
    parameters = [x, *aspp.parameters()]
    ours = torch.autograd.grad((aspp(x) * weight).sum(), parameters)
    wanted = torch.autograd.grad((published_aspp(aspp, x) * weight).sum(), parameters)
    for found, one in zip(ours, wanted, strict=True):
        assert_close(found, one)


def test_dropout_takes_whole_maps_behind_the_branches_and_elements_behind_the_projection() -> None:
    aspp = pyramid(dropout=0.5).train()
    x = maps(2, (9, 11))
    branch = aspp.convs[1](x)
    assert 0 < (branch.amax((2, 3)) == 0).float().mean() < 1
    wanted = aspp.eval()(x)
    out = aspp.train()(x)
    assert out.shape == wanted.shape
    assert not torch.allclose(out, wanted)
    with torch.no_grad():
        aspp.project[0].bias.fill_(100.0)  # no element is 0 before its dropout
    dropped = aspp(x) == 0
    assert 0.4 < dropped.float().mean() < 0.6
    assert 0 < dropped.flatten(2).float().mean(2).min() < 1
