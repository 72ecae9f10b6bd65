from __future__ import annotations

from torch import nn

from fastfss.encoders.mobilenet_v2_tf import SameConv2d
from fastfss.encoders.pointwise import use_pointwise_
from fastfss.ops._gpu_inference import _replaceable


def test_what_cudnn_may_stand_in_for():
    plain, pointwise = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 1)
    use_pointwise_(pointwise)
    assert _replaceable(plain) and _replaceable(pointwise)
    assert not _replaceable(SameConv2d(3, 4))  # it pads first
    plain.register_forward_hook(lambda module, inputs, output: None)
    assert not _replaceable(plain)
