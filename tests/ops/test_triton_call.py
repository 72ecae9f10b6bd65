"""When Triton is taken: decided from tensors that say they are on a GPU, without one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from fastfss.ops import _cuda_call, _triton_call, dense_match, explain


@pytest.fixture
def capability(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The GPU's, and Triton installed, in a build without CUDA; a test may set others."""
    monkeypatch.setattr(_cuda_call, "module", None)
    monkeypatch.setattr(_triton_call, "installed", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    _triton_call.why_not_device.cache_clear()
    yield
    _triton_call.why_not_device.cache_clear()


def maps(dtype: torch.dtype = torch.float16, device: str = "cuda", channels: int = 8) -> Tensor:
    with FakeTensorMode():
        return torch.empty(2, channels, 5, 6, dtype=dtype, device=device)


@pytest.mark.usefixtures("capability")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_auto_takes_triton_on_a_gpu(dtype):
    x = maps(dtype)
    found = [
        explain("dense_match", x, x),
        explain("dense_match_sums", x, x, x, x[:, 0]),
        explain("dense_correlation", [x], [x]),
        explain("masked_average_pool", x, x),
        explain("prototype_match", x, x[:, :, :3, 0].transpose(1, 2)),
    ]
    for one in found:
        assert one.backend == "triton"
        assert one.reasons["native"].startswith("the native core runs on the CPU")
        assert one.reasons["reference"] == "a Triton kernel serves the call"
        assert "no CUDA" in one.reasons["cuda"]


@pytest.mark.usefixtures("capability")
def test_what_triton_does_not_take_goes_to_the_reference_with_a_reason(monkeypatch):
    def reason(x: Tensor) -> str:
        found = explain("dense_match", x, x)
        assert found.backend == "reference"
        return found.reasons["triton"]

    assert "float64" in reason(maps(torch.float64))
    assert "2^31 elements" in reason(maps(channels=1 << 27))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    _triton_call.why_not_device.cache_clear()
    assert "compute capability 8.0, cuda:0 has 7.5" in reason(maps())
    monkeypatch.setattr(_triton_call, "installed", lambda: False)
    _triton_call.why_not_device.cache_clear()
    assert "triton is not installed" in reason(maps())


def test_on_the_cpu_a_forced_triton_is_refused_with_the_device():
    x = torch.ones(1, 2, 3)
    with pytest.raises(NotImplementedError, match=r"'triton' cannot serve .* a tensor is on cpu"):
        dense_match(x, x, backend="triton")
    assert "on a GPU" in explain("dense_match", x, x).reasons["triton"]
