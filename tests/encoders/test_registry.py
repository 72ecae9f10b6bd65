from __future__ import annotations

import pytest
import torch

from fastfss.encoders import Encoder, create_encoder, list_encoders
from fastfss.weights import CheckpointError


def test_every_listed_name_builds_an_encoder_of_that_name():
    names = list_encoders()
    assert {"deep_resnet50", "deep_resnet101", "resnet18", "vgg16_bn", "mobilenet_v2"} <= set(names)
    for name in names:
        encoder = create_encoder(name)
        assert isinstance(encoder, Encoder)
        assert encoder.name == name
        assert encoder.options == {}


def test_list_is_the_callers_own():
    list_encoders().clear()
    assert list_encoders()


def test_random_weights_follow_the_seed():
    torch.manual_seed(5)
    first = create_encoder("mobilenet_v2").state_dict()
    torch.manual_seed(5)
    again = create_encoder("mobilenet_v2").state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    other = create_encoder("mobilenet_v2").state_dict()
    assert not torch.equal(first["body.0.0.weight"], other["body.0.0.weight"])


def test_unknown_name_suggests_the_near_one():
    with pytest.raises(ValueError, match=r"no encoder 'resnet-50'; did you mean 'resnet50'\?"):
        create_encoder("resnet-50")
    with pytest.raises(ValueError, match=r"There are deep_resnet50, .*'timm:<model of timm>'"):
        create_encoder("swin")


def test_unknown_option_is_refused():
    with pytest.raises(TypeError, match="resnet18 takes no option 'output_stride', 'dilation'"):
        create_encoder("resnet18", output_stride=8, dilation=2)


def test_unknown_last_map_is_refused():
    with pytest.raises(ValueError, match="no feature map 'layer5'; it has layer1"):
        create_encoder("resnet18", last="layer5")


def test_encoder_without_download_says_so():
    with pytest.raises(ValueError, match="mobilenet_v2_tf: no ImageNet weights"):
        create_encoder("mobilenet_v2_tf", weights="imagenet")


def test_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"absent\.pth: no such file"):
        create_encoder("resnet18", weights=tmp_path / "absent.pth")


def test_folded_without_weights_has_biases_in_place_of_norms():
    encoder = create_encoder("resnet18", folded=True, last="layer2")
    assert encoder.options == {"folded": True, "last": "layer2"}
    assert "layer1.0.conv1.bias" in encoder.state_dict()
    assert not any("running_mean" in key for key in encoder.state_dict())
