from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastfss.encoders import FeatureInfo, Normalization, create_encoder
from fastfss.encoders.base import StagedEncoder
from tests.encoders.helpers import FAMILIES, assert_maps_close, images, with_statistics


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_folded_copy_is_equal_and_has_no_batch_norm(name, channels_last):
    torch.manual_seed(0)
    encoder = with_statistics(create_encoder(name))
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    x = images(65, 97)
    wanted = encoder(x)
    folded = encoder.fold_batch_norm(channels_last=channels_last)
    assert_maps_close(folded(x), wanted, 1e-5)
    assert not any(isinstance(module, _BatchNorm) for module in folded.modules())
    assert not folded.training
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    assert folded.features == encoder.features
    # The original is as it was, and shares nothing.
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())
    assert encoder.training
    for parameter in folded.parameters():
        parameter.zero_()
    assert_maps_close(encoder(x), wanted, 0.0)


@torch.no_grad()
def test_channels_last_is_an_option_of_weights_and_maps():
    encoder = create_encoder("resnet18")
    for flag in (False, True):
        folded = encoder.fold_batch_norm(channels_last=flag)
        weight = folded.get_submodule("layer1.0.conv1").weight
        assert weight.is_contiguous(memory_format=torch.channels_last) == flag
        found = folded(images(64, 64), ["layer2"])["layer2"]
        assert found.is_contiguous(memory_format=torch.channels_last) == flag


@torch.no_grad()
def test_folding_in_float64_is_equal_to_float64_rounding():
    encoder = with_statistics(create_encoder("resnet18")).double()
    x = images(64, 64).double()
    assert_maps_close(encoder.fold_batch_norm()(x), encoder(x), 1e-13)


def test_folding_twice_changes_nothing_more():
    once = with_statistics(create_encoder("resnet18")).fold_batch_norm()
    twice = once.fold_batch_norm()
    assert twice.options == once.options == {"folded": True}
    assert list(twice.state_dict()) == list(once.state_dict())


class Odd(StagedEncoder):
    """Two convolutions and a batch norm, in an order of the test's choosing."""

    def __init__(self) -> None:
        super().__init__(
            "odd",
            [FeatureInfo("out", 3, 1)],
            Normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
            {"out": ("block",)},
        )


class Residual(nn.Module):
    """The convolution's output is used beside its norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        y = self.conv(x)
        return y + self.bn(y)


class Registered(nn.Module):
    """Registered in another order than run, the convolution before the norm feeding nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.second, self.bn, self.first = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.second(self.bn(self.first(x)))


class Twice(nn.Module):
    """One convolution, run for two norms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.bn1, self.bn2 = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.bn2(self.conv(self.bn1(self.conv(x))))


def odd(block: nn.Module) -> Odd:
    torch.manual_seed(0)
    encoder = Odd()
    encoder.add_module("block", block)
    with_statistics(encoder)
    return encoder.eval()


@torch.no_grad()
def test_norm_before_a_convolution_stays():
    encoder = odd(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 3, 1)))
    folded = encoder.fold_batch_norm()
    assert_maps_close(folded(images(8, 8)), encoder(images(8, 8)), 0.0)
    assert folded.options == {}


@torch.no_grad()
def test_norm_of_a_convolution_that_runs_twice_stays():
    encoder = odd(Twice())
    folded = encoder.fold_batch_norm()
    assert_maps_close(folded(images(8, 8)), encoder(images(8, 8)), 0.0)


@torch.no_grad()
def test_execution_decides_not_the_order_of_registration():
    encoder = odd(Registered())
    folded = encoder.fold_batch_norm()
    assert isinstance(folded.get_submodule("block.bn"), nn.Identity)
    assert_maps_close(folded(images(8, 8)), encoder(images(8, 8)), 1e-6)


def test_convolution_with_other_users_is_refused():
    with pytest.raises(NotImplementedError, match="used beside its norm"):
        odd(Residual()).fold_batch_norm()
