"""The native module and how tensors are handed to it."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

# torch first: its OpenMP runtime is the one that the native module then shares.
import torch
from torch import Tensor

from fastfss.kernels._launch import interpreted

# The values of fastfss::DType in csrc/include/fastfss/tensor.h.
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.uint8: 2, torch.bool: 2, torch.float16: 3}

View = tuple[int, int, torch.Size, tuple[int, ...]]


def _load() -> ModuleType | None:
    # Absent is a build without native code (FASTFSS_BUILD=python). Present but broken is an error.
    if importlib.util.find_spec("fastfss._native") is None:
        return None
    return importlib.import_module("fastfss._native")


module: ModuleType | None = _load()


def view(tensor: Tensor) -> View:
    """Address, dtype, sizes and strides: what csrc/module.cpp reads as a TensorView.

    It holds no reference: the tensor must have a name of its own while the view is used.
    """
    return tensor.data_ptr(), DTYPES[tensor.dtype], tensor.shape, tensor.stride()


def why_not_native(*tensors: Tensor) -> str | None:
    """Why the native CPU code cannot serve these tensors, or None. Common to all operations."""
    if module is None:
        return "this build has no native code (FASTFSS_BUILD=python)"
    if interpreted():
        return "TRITON_INTERPRET=1 hands the calls to Triton's interpreter"
    for tensor in tensors:
        if tensor.device.type != "cpu":
            return f"the native core runs on the CPU, a tensor is on {tensor.device}"
        if tensor.dtype not in (torch.float32, torch.bfloat16):
            return f"the native core takes float32 and bfloat16, not {tensor.dtype}"
    if len({tensor.dtype for tensor in tensors}) > 1:
        return f"mixed dtypes {[str(tensor.dtype) for tensor in tensors]}"
    return None
