"""Batch norm folded into convolutions."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.hooks import RemovableHandle

# Folding rounds each weight once; a model that computes something else differs far more than this.
_EQUAL_IN_EPS = 1000


def fold_batch_norm_(model: nn.Module, probe: Tensor) -> bool:
    """Fold the batch norms of a model into the convolutions before them, in place.

    A norm that follows no convolution, as in a pre-activation network, stays. Which convolution
    feeds which norm is watched on one forward pass, not guessed from names or the order of
    registration; a second pass checks that the maps have stayed the same.

    Args:
        model: in evaluation mode; returns a dictionary of tensors.
        probe: an input that runs all of it.

    Returns:
        Whether any was folded.

    Raises:
        NotImplementedError: a norm follows a convolution whose output has other users, or that
            changes its weights on the way.
    """
    norms = {name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm)}
    if not norms:
        return False
    with _without_tf32():
        before, feeders = _watch(model, norms, probe)
    if not feeders:
        return False
    for name, (convolution_name, convolution) in feeders.items():
        # In float64, so that the only error is the rounding of the result.
        fused = fuse_conv_bn_eval(
            copy.deepcopy(convolution).double(), copy.deepcopy(norms[name]).double()
        )
        fused = fused.to(convolution.weight.dtype).requires_grad_(False)
        _replace(model, convolution_name, fused)
        _replace(model, name, _after(norms[name]))
    with torch.no_grad(), _without_tf32():
        after = model(probe)
    for name, expected in before.items():
        error = (after[name] - expected).norm() / expected.norm()
        if not error <= _EQUAL_IN_EPS * torch.finfo(expected.dtype).eps:
            raise NotImplementedError(
                f"with its batch norms folded the map {name!r} differs by {error:.1e} of its norm: "
                f"the output of some convolution is used beside its norm, or its weights change"
            )
    return True


@contextmanager
def _without_tf32() -> Iterator[None]:
    """cuDNN's convolutions of float32 in float32: TF32, its default, differs by 5e-4."""
    now = torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark
    with torch.backends.cudnn.flags(enabled=now[0], benchmark=now[1], allow_tf32=False):
        yield


def _watch(
    model: nn.Module, norms: dict[str, _BatchNorm], probe: Tensor
) -> tuple[dict[str, Tensor], dict[str, tuple[str, nn.Conv2d]]]:
    """The model's maps, and for each norm that took a convolution's output that convolution."""
    # The outputs are kept, not their ids alone: a freed tensor's id would be given out again.
    outputs: list[tuple[Tensor, str, nn.Conv2d]] = []
    feeders: dict[str, tuple[str, nn.Conv2d]] = {}

    def watch_convolution(name: str, module: nn.Conv2d) -> RemovableHandle:
        return module.register_forward_hook(
            lambda _module, _inputs, output: outputs.append((output, name, module))
        )

    def watch_norm(name: str, module: nn.Module) -> RemovableHandle:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            for output, convolution_name, convolution in outputs:
                if output is inputs[0]:
                    feeders[name] = (convolution_name, convolution)

        return module.register_forward_pre_hook(hook)

    handles = [watch_norm(name, norm) for name, norm in norms.items()]
    handles += [
        watch_convolution(name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    try:
        with torch.no_grad():
            maps: dict[str, Tensor] = model(probe)
    finally:
        for handle in handles:
            handle.remove()
    runs = [name for _, name, _ in outputs]
    return maps, {norm: feeder for norm, feeder in feeders.items() if runs.count(feeder[0]) == 1}


def _after(norm: nn.Module) -> nn.Module:
    """What is left of a norm: nothing, or the activation that timm's norms carry."""
    activation = getattr(norm, "act", None)
    return activation if isinstance(activation, nn.Module) else nn.Identity()


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, leaf = path.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)
