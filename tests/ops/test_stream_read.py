from __future__ import annotations

import torch

from fastfss.ops import _native_call


def test_everything_is_read(isa: str) -> None:
    assert _native_call.module is not None
    data = torch.arange(1280.0)
    total = _native_call.module.stream_read(_native_call.view(data), data.numel(), 1)
    assert total == data.sum()
