"""Folded encoders with cuDNN's fused convolutions, against the same encoder on the CPU."""

from __future__ import annotations

import pytest
import torch

from fastfss import create_encoder
from fastfss.ops._gpu_inference import run

NAMES = (
    *("deep_resnet50", "blocks_resnet50", "blocks_vgg16", "resnet18", "resnet50", "vgg16"),
    *("pfenet_resnet50", "dilated_resnet50", "panet_vgg16", "mobilenet_v2"),
)


@pytest.mark.gpu
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_maps_are_those_of_the_cpu(name, channels_last):
    torch.manual_seed(0)
    encoder = create_encoder(name).eval()
    images = torch.randn(2, 3, 97, 129)
    folded = encoder.fold_batch_norm(channels_last=channels_last)
    on_gpu = folded.cuda()
    with torch.backends.cudnn.flags(allow_tf32=False, enabled=True), torch.no_grad():
        maps = on_gpu(images.cuda())
        wanted = encoder(images)
        for key, one in wanted.items():
            error = (maps[key].cpu() - one).norm() / one.norm()
            assert error < 1e-4, key
        narrow = folded.bfloat16()(images.cuda().bfloat16())
    for key, one in wanted.items():
        assert (narrow[key].cpu().float() - one).norm() / one.norm() < 0.05, key


@pytest.mark.gpu
def test_a_hook_sees_its_module_and_gradients_pass():
    torch.manual_seed(0)
    block = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU()).cuda()
    x, seen = torch.randn(1, 3, 9, 9).cuda(), []
    block[0].register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        plain = run([block], x)
    assert len(seen) == 1 and torch.equal(seen[0].relu(), plain)
    leaf = x.clone().requires_grad_()
    run([block], leaf).sum().backward()
    assert leaf.grad is not None
