"""What the encoder tests share."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

# One of each family: the others differ in their numbers alone, which the test of shapes covers.
FAMILIES = (
    "deep_resnet50",
    "resnet18",
    "resnet50",
    "vgg16_bn",
    "mobilenet_v2",
    "mobilenet_v2_tf",
    "panet_vgg16",
    "squeezenet1_1",
)


def images(*size: int, seed: int = 0) -> Tensor:
    """One random image (1, 3, H, W)."""
    return torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(seed))


def with_statistics(module: nn.Module, seed: int = 1) -> nn.Module:
    """Batch norms as after training: scales, shifts and statistics that are not 1 and 0."""
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, _BatchNorm):
            for tensor, low, high in (
                (part.weight, 0.5, 1.5),
                (part.bias, -0.2, 0.2),
                (part.running_mean, -0.3, 0.3),
                (part.running_var, 0.5, 1.5),
            ):
                assert tensor is not None
                tensor.data.uniform_(low, high, generator=generator)
    return module


def relative_error(found: Tensor, wanted: Tensor) -> float:
    assert found.shape == wanted.shape, f"{tuple(found.shape)} != {tuple(wanted.shape)}"
    return float((found - wanted).double().norm() / wanted.double().norm())


def assert_maps_close(
    found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], tolerance: float
) -> None:
    assert list(found) == list(wanted)
    errors = {name: relative_error(found[name], wanted[name]) for name in wanted}
    assert all(error <= tolerance for error in errors.values()), errors
