"""What PyTorch does slowly, or in several passes over the maps, on an NVIDIA GPU without gradients.

Each function has PyTorch's own form for everything else. An H200 with SSP's encoder (ResNet-50, 473
px, bfloat16) took 857 us for one image and 17.2 ms for 32 with PyTorch's; with ReLU, bias and sum
inside of cuDNN's convolutions 484 us and 7.9 ms.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastfss.ops import _triton_call

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def _plain(*tensors: Tensor) -> bool:
    """Whether these are tensors of values, wanted without gradients and without a graph."""
    if torch.compiler.is_compiling():
        return False
    # Not a tensor without values, of an export or a test.
    if any(type(one) not in (Tensor, nn.Parameter) for one in tensors):
        return False
    if torch.is_grad_enabled() and any(one.requires_grad for one in tensors):
        return False
    return not torch.is_autocast_enabled(tensors[0].device.type)


def _replaceable(conv: nn.Conv2d) -> bool:
    """Whether a call is the convolution alone: no steps of a subclass, no hook to see it."""
    return type(conv).forward is nn.Conv2d.forward and not _hooked(conv)


def _by_cudnn(x: Tensor, conv: nn.Conv2d) -> bool:
    return (
        x.is_cuda
        and _replaceable(conv)
        and torch.version.hip is None
        and torch.backends.cudnn.enabled
        and x.dtype == conv.weight.dtype
        and x.dtype in _DTYPES
        and conv.bias is not None
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
        and _plain(x, conv.weight)
    )


def convolution(
    x: Tensor,  # (B, C, h, w)
    conv: nn.Conv2d,
    *,
    add: Tensor | None = None,  # (B, D, h', w')
    relu: bool = False,
) -> Tensor:  # (B, D, h', w')
    """relu(conv(x) + add), in one kernel where cuDNN or cuBLAS has it."""
    if _by_cudnn(x, conv):
        assert not isinstance(conv.padding, str)
        weight, bias, groups = conv.weight, conv.bias, conv.groups
        where = conv.stride, conv.padding, conv.dilation
        if relu and add is None:
            return torch.cudnn_convolution_relu(x, weight, bias, *where, groups)
        if relu and add is not None:
            return torch.cudnn_convolution_add_relu(x, weight, add, 1.0, bias, *where, groups)
        y = _as_product(x, conv) if _is_product(x, conv) else conv(x)
    else:
        y = conv(x)
    if add is not None:
        y += add
    return F.relu(y, inplace=True) if relu else y


def _is_product(x: Tensor, conv: nn.Conv2d) -> bool:
    one = conv.kernel_size == conv.stride == (1, 1) and conv.padding == (0, 0)
    return one and conv.groups == 1 and x.is_contiguous(memory_format=torch.channels_last)


def _as_product(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """A 1x1 convolution by cuBLAS, which adds the bias; PyTorch's adds it in a second pass."""
    rows = x.permute(0, 2, 3, 1)
    assert conv.bias is not None
    product = torch.addmm(conv.bias, rows.flatten(0, 2), conv.weight.flatten(1).t())
    return product.view(*rows.shape[:3], -1).permute(0, 3, 1, 2)


def max_pool(x: Tensor, pool: nn.MaxPool2d) -> Tensor:
    """The module's result. PyTorch's kernel for channels-last maps takes 6 times its reading."""
    kernel, stride, padding = pool.kernel_size, pool.stride, pool.padding
    ours = (
        isinstance(kernel, int)
        and isinstance(stride, int)
        and isinstance(padding, int)
        and pool.dilation == 1
        and not (pool.ceil_mode or pool.return_indices)
        and x.ndim == 4
        and x.shape[1] % 8 == 0
        and x.is_contiguous(memory_format=torch.channels_last)
        and not x.is_contiguous()
        and _plain(x)
        and _triton_call.why_not_triton(x) is None
    )
    if not ours:
        return pool(x)  # type: ignore[no-any-return]
    with _triton_call.on_device_of(x):
        return _triton_call.kernels("max_pool").forward(x, kernel, stride, padding)  # type: ignore[no-any-return]


def enlarge(
    small: Tensor,  # (B, h, w, E), contiguous
    size: tuple[int, int],
    add: Tensor | None = None,  # (B, H, W, E), contiguous
) -> Tensor | None:  # (B, H, W, E)
    """small resized (bilinear, align_corners=True), plus `add`; None: not served.

    PyTorch's kernel for channels-last maps takes ten times the reading and writing.
    """
    maps = (small,) if add is None else (small, add)
    served = (
        small.shape[3] % 8 == 0
        and all(one.is_contiguous() for one in maps)
        and _plain(*maps)
        and _triton_call.why_not_triton(*maps) is None
    )
    if not served:
        return None
    out = small.new_empty(small.shape[0], *size, small.shape[3])
    with _triton_call.on_device_of(out):
        _triton_call.kernels("enlarge").forward(small, add, out)
    return out


def confident(
    scores: Tensor,  # (B, 2, h, w): background, foreground
    foreground_limit: float,
    background_limit: float,
    fallback: int,
) -> Tensor | None:  # (B, 2, h, w) 0/1: foreground, background
    """SSP's confident positions, see methods/self_support.py; None: not served."""
    served = (
        scores.is_contiguous()
        and _plain(scores)
        and _triton_call.why_not_triton(scores) is None
        and scores.shape[2:].numel() <= _triton_call.kernels("confident").MOST_POSITIONS
    )
    if not served:
        return None
    out = torch.empty_like(scores)
    limits = foreground_limit, background_limit
    with _triton_call.on_device_of(out):
        _triton_call.kernels("confident").forward(
            scores.flatten(2), *limits, fallback, out.flatten(2)
        )
    return out


def weighted_maps(
    parts: tuple[Tensor, ...],  # one or two of (B, C, h, w), float32
    weights: Tensor,  # (B, h, w), float32
    constant: Tensor,  # (B, C)
    dtype: torch.dtype,
    other: Tensor | None = None,  # (B, C, h, w) of the dtype
    factor: float = 0.0,
) -> Tensor | None:  # (B, C, h, w)
    """sum(parts) weights + constant + factor other, in one pass; None: not served."""
    maps = (*parts, *(() if other is None else (other,)))
    formats = torch.contiguous_format, torch.channels_last
    kept = next((f for f in formats if all(m.is_contiguous(memory_format=f) for m in maps)), None)
    served = (
        kept is not None
        and weights.dtype == torch.float32
        and all(one.dtype == torch.float32 for one in parts)
        and _plain(*maps, weights, constant)
        and _triton_call.why_not_triton(*parts) is None
    )
    if not served:
        return None
    out = torch.empty_like(parts[0], dtype=dtype)
    with _triton_call.on_device_of(out):
        _triton_call.kernels("weighted_maps").forward(parts, weights, constant, other, factor, out)
    return out


def run(modules: list[nn.Module], x: Tensor) -> Tensor:
    """The modules, one after another; on a GPU a convolution takes the ReLU behind it along."""
    if not (x.is_cuda and _plain(x)):
        for module in modules:
            x = module(x)
        return x
    steps = _flat(modules)
    at = 0
    while at < len(steps):
        module, at = steps[at], at + 1
        if type(module) is nn.MaxPool2d and not _hooked(module):
            x = max_pool(x, module)
        elif isinstance(module, nn.Conv2d) and not _hooked(module):
            relu = at < len(steps) and type(steps[at]) is nn.ReLU and not _hooked(steps[at])
            at += relu
            x = convolution(x, module, relu=relu)
        else:
            x = module(x)
    return x


def _flat(modules: list[nn.Module]) -> list[nn.Module]:
    """The modules inside of plain sequences, without those that do nothing."""
    found = []
    for module in modules:
        if type(module) is nn.Sequential and not _hooked(module):
            found += _flat(list(module))
        elif type(module) is not nn.Identity or _hooked(module):
            found.append(module)
    return found


def _hooked(module: nn.Module) -> bool:
    """Whether somebody watches the module, who would not see it pass."""
    return bool(module._forward_hooks or module._forward_pre_hooks)
