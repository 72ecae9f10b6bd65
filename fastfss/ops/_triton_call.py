"""Triton's kernels: when they serve a call, and how they are reached without importing Triton."""

from __future__ import annotations

import importlib
import importlib.util
import os
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from fastfss.kernels._launch import interpreted

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# What Triton compiles for: NVIDIA's Ampere and later.
LEAST_CAPABILITY = (8, 0)


def kernels(operation: str) -> ModuleType:
    """The module fastfss.kernels.<operation>; loads Triton."""
    return importlib.import_module(f"fastfss.kernels.{operation}")


@cache
def installed() -> bool:
    """Whether Triton is there; torch's CUDA builds bring it."""
    return importlib.util.find_spec("triton") is not None


@cache
def why_not_device(device: torch.device) -> str | None:
    """Why Triton does not compile for the device, or is not wanted, or None."""
    if os.environ.get("FASTFSS_TRITON") == "0":
        return "switched off by FASTFSS_TRITON=0"
    if not installed():
        return "triton is not installed: pip install triton"
    if device.type == "cuda" and torch.version.hip is None:
        capability = torch.cuda.get_device_capability(device)
        if capability < LEAST_CAPABILITY:
            wanted, found = (".".join(map(str, one)) for one in (LEAST_CAPABILITY, capability))
            return f"Triton needs compute capability {wanted}, {device} has {found}"
    return None


@cache
def has_warpgroup_products(device: torch.device) -> bool:
    """Whether Triton multiplies there by Hopper's wgmma; csrc/cuda has Ampere's mma.sync alone."""
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability(device) >= (9, 0)


def on_device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device: make it the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def _span(tensor: Tensor) -> int:
    """Elements from the first to behind the last of one item of the batch."""
    sizes = zip(tensor.shape[1:], tensor.stride()[1:], strict=True)
    return 1 + sum((size - 1) * stride for size, stride in sizes)


def why_not_triton(*tensors: Tensor) -> str | None:
    """Why Triton's kernels cannot serve these tensors, or None. Common to all operations."""
    device = tensors[0].device
    if device.type != "cuda" and not (device.type == "cpu" and interpreted()):
        return f"Triton's kernels run on a GPU, a tensor is on {device}"
    if (reason := why_not_device(device)) is not None:
        return reason
    for tensor in tensors:
        if tensor.dtype not in DTYPES:
            return f"Triton's kernels take float32, float16 and bfloat16, not {tensor.dtype}"
        if _span(tensor) >= 1 << 31:
            return f"an item of {tuple(tensor.shape)} spans 2^31 elements or more"
    if len({tensor.dtype for tensor in tensors}) > 1:
        return f"mixed dtypes {[str(tensor.dtype) for tensor in tensors]}"
    return None
