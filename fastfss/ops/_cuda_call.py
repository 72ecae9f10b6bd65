"""The kernels in CUDA C++: when they serve a call, and what they are handed."""

from __future__ import annotations

from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from fastfss.ops import _native_call

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# A grid's extent in y and z; batches, masks and layers lie along them.
MOST_BLOCKS = 65535

# fastfss._native; tests put their emulated kernels here.
module: ModuleType | None = _native_call.module


@cache
def why_not_device(device: torch.device) -> str | None:
    """Why the kernels do not run on the device, or None."""
    if device.type != "cuda":
        return f"CUDA kernels run on an NVIDIA GPU, a tensor is on {device}"
    if torch.version.hip is not None:
        return "CUDA kernels run on NVIDIA GPUs, this torch is built for AMD's"
    assert module is not None
    if (built := module.cuda_architectures) == "native":
        return None
    capability = torch.cuda.get_device_capability(device)
    # Code of an older architecture is translated by the driver when it is loaded.
    least = min(int("".join(filter(str.isdigit, one))) for one in built.split(","))
    if capability[0] * 10 + capability[1] < least:
        found = f"sm_{capability[0]}{capability[1]}"
        return f"built for sm_{least} and later (FASTFSS_CUDA_ARCHS), {device} is {found}"
    return None


def why_not_cuda(*tensors: Tensor) -> str | None:
    """Why the CUDA kernels cannot serve these tensors, or None. Common to all operations."""
    if module is None or getattr(module, "cuda_architectures", None) is None:
        return "this build has no CUDA kernels: see FASTFSS_CUDA_ARCHS in docs/install.md"
    if (reason := why_not_device(tensors[0].device)) is not None:
        return reason
    for tensor in tensors:
        if tensor.dtype not in DTYPES:
            return f"CUDA kernels take float32, float16 and bfloat16, not {tensor.dtype}"
        if tensor.shape[0] > MOST_BLOCKS:
            return f"{tuple(tensor.shape)}: a batch of more than {MOST_BLOCKS}"
        if tensor.shape[2:].numel() >= 1 << 31:
            return f"{tuple(tensor.shape)}: 2^31 positions or more"
    if len({tensor.dtype for tensor in tensors}) > 1:
        return f"mixed dtypes {[str(tensor.dtype) for tensor in tensors]}"
    return None


def stream_of(tensor: Tensor) -> int:
    """The current stream of the tensor's device, as the module takes it."""
    return torch.cuda.current_stream(tensor.device).cuda_stream if tensor.is_cuda else 0
