from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastfss.encoders import Normalization, create_encoder
from fastfss.encoders.mobilenet_v2_tf import SameConv2d
from fastfss.weights import CheckpointError, save_checkpoint
from tests.encoders.helpers import assert_maps_close, images


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(1, 2), (3, 4), (7, 8), (8, 8), (224, 225)], ids=str)
@torch.no_grad()
def test_same_padding_follows_tensorflows_definition(size, stride):
    """Output i covers inputs i * stride - before ... + 2, with before = floor(total / 2)."""
    torch.manual_seed(0)
    convolution = SameConv2d(1, 1, stride=stride)
    x = torch.randn(1, 1, *size)
    wanted_size = [-(-length // stride) for length in size]
    before = [
        max((out - 1) * stride + 3 - length, 0) // 2
        for out, length in zip(wanted_size, size, strict=True)
    ]
    wide = F.pad(x, (4, 4, 4, 4))
    wanted = torch.stack(
        [
            (
                wide[0, 0, 4 + i * stride - before[0] :, 4 + j * stride - before[1] :][:3, :3]
                * convolution.weight[0, 0]
            ).sum()
            + convolution.bias[0]
            for i in range(wanted_size[0])
            for j in range(wanted_size[1])
        ]
    )
    torch.testing.assert_close(convolution(x).flatten(), wanted, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_equal_to_torchvisions_network_where_the_paddings_agree():
    """At odd sizes SAME pads both sides by one, as torchvision does."""
    torch.manual_seed(0)
    torchvision_form = create_encoder("mobilenet_v2").fold_batch_norm()
    for parameter in torchvision_form.parameters():
        if parameter.ndim == 1:
            parameter.normal_(std=0.1)
    theirs = list(torchvision_form.state_dict().values())
    encoder = create_encoder("mobilenet_v2_tf").eval()
    for ours, value in zip(encoder.state_dict().values(), theirs, strict=True):
        ours.copy_(value)
    x = images(97, 129)  # 97, 49, 25, 13, 7 and 129, 65, 33, 17, 9
    assert_maps_close(encoder(x), torchvision_form(x), 1e-6)


def test_input_range_is_minus_one_to_one():
    encoder = create_encoder("mobilenet_v2_tf")
    assert encoder.normalization == Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    found = encoder.normalization.apply(torch.tensor([0.0, 0.5, 1.0]).expand(3, 1, 3))
    assert found[0, 0].tolist() == [-1.0, 0.0, 1.0]


def test_head_of_the_file_is_left_out_and_other_keys_are_not(tmp_path):
    own = create_encoder("mobilenet_v2_tf").state_dict()
    path = tmp_path / "a.safetensors"
    head = {"head.weight": torch.ones(1), "classifier.bias": torch.ones(1)}
    save_checkpoint(path, {**own, **head})
    found = create_encoder("mobilenet_v2_tf", weights=path).state_dict()
    assert all(torch.equal(found[key], own[key]) for key in own)
    save_checkpoint(path, {**own, "neck.weight": torch.ones(1)})
    with pytest.raises(CheckpointError, match=r"1 unexpected: neck\.weight"):
        create_encoder("mobilenet_v2_tf", weights=path)


def test_torchvisions_name_points_to_this_one(tmp_path):
    save_checkpoint(tmp_path / "a.safetensors", create_encoder("mobilenet_v2_tf").state_dict())
    with pytest.raises(CheckpointError, match=r"create_encoder\('mobilenet_v2_tf'\)"):
        create_encoder("mobilenet_v2", weights=tmp_path / "a.safetensors")
