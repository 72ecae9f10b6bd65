"""When CUDA C++ is taken: decided from tensors that say they are on a GPU, without one."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from fastfss.ops import _cuda_call, _triton_call, dense_match, explain, masked_average_pool
from fastfss.ops.explain import Explanation
from fastfss.ops.masked_average_pool import _forward


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A build for sm_80 and sm_90 on an sm_90, with Triton."""
    module = SimpleNamespace(cuda_architectures="80,90")
    monkeypatch.setattr(_cuda_call, "module", module)
    monkeypatch.setattr(_triton_call, "installed", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.version, "hip", None)
    forget()
    yield module
    forget()


def forget() -> None:
    """What was found out about devices."""
    for call in (_cuda_call, _triton_call):
        call.why_not_device.cache_clear()
    _triton_call.has_warpgroup_products.cache_clear()


def maps(*shape: int, dtype: torch.dtype = torch.bfloat16, last: bool = False) -> Tensor:
    with FakeTensorMode():
        made = torch.empty(shape or (2, 8, 5, 6), dtype=dtype, device="cuda")
        return made.contiguous(memory_format=torch.channels_last) if last else made


def pool(x: Tensor) -> Explanation:
    return explain("masked_average_pool", x, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_auto_takes_cuda_before_triton(build, dtype):
    x = maps(dtype=dtype)
    prototypes = maps(2, 3, 8, dtype=dtype)
    for one in (pool(x), explain("prototype_match", x, prototypes)):
        assert one.backend == "cuda"
        assert one.reasons["triton"] == "a kernel in CUDA C++ serves the call"
    assert explain("dense_match", x, x).backend == "triton"
    each = explain("prototype_match", x, maps(2, 3, 8, 5, 6, dtype=dtype))
    assert each.backend == "triton"
    assert "prototype for every position" in each.reasons["cuda"]


@pytest.mark.parametrize(
    ("capability", "dtype", "first"),
    [
        ((9, 0), torch.bfloat16, "triton"),
        ((9, 0), torch.float16, "triton"),
        ((10, 0), torch.bfloat16, "triton"),
        ((9, 0), torch.float32, "cuda"),
        ((8, 0), torch.bfloat16, "cuda"),
        ((8, 9), torch.float16, "cuda"),
    ],
)
def test_correlation_in_16_bits_is_tritons_from_hopper_on(
    build, monkeypatch, capability, dtype, first
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    x = maps(dtype=dtype)
    found = explain("dense_correlation", [x], [x])
    assert found.backend == first
    other = {"triton": "a Triton kernel", "cuda": "a kernel in CUDA C++"}[first]
    assert found.reasons["cuda" if first == "triton" else "triton"] == f"{other} serves the call"
    # Without Triton the order changes nothing.
    monkeypatch.setattr(_triton_call, "installed", lambda: False)
    _triton_call.why_not_device.cache_clear()
    assert explain("dense_correlation", [x], [x]).backend == "cuda"


def test_correlation_of_channels_last_maps_in_float32_is_tritons_too(build):
    x = maps(dtype=torch.float32, last=True)
    assert explain("dense_correlation", [x], [x]).backend == "triton"


@pytest.mark.parametrize(
    ("count", "dtype", "first"),
    [
        (8, torch.bfloat16, "cuda"),
        (9, torch.bfloat16, "triton"),
        (9, torch.float16, "triton"),
        (9, torch.float32, "cuda"),
    ],
)
def test_many_prototypes_in_16_bits_are_tritons(build, count, dtype, first):
    x, prototypes = maps(dtype=dtype), maps(2, count, 8, dtype=dtype)
    assert explain("prototype_match", x, prototypes).backend == first


def test_what_it_does_not_take_goes_to_others_with_a_reason(build):
    assert "float64" in pool(maps(dtype=torch.float64)).reasons["cuda"]
    assert "a batch of more than 65535" in pool(maps(1 << 17, 1, 2, 2)).reasons["cuda"]
    assert "2^31 positions" in pool(maps(1, 1, 1 << 16, 1 << 15)).reasons["cuda"]
    many = explain("masked_average_pool", maps(1, 1, 2, 2), maps(1, 1 << 17, 2, 2))
    assert "131072 masks" in many.reasons["cuda"]


@pytest.mark.parametrize(
    ("capability", "taken"), [((7, 5), False), ((8, 0), True), ((8, 9), True), ((12, 0), True)]
)
def test_a_gpu_older_than_the_build_is_refused_by_name(build, monkeypatch, capability, taken):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    found = pool(maps())
    assert (found.backend == "cuda") == taken
    if not taken:
        assert (
            "built for sm_80 and later (FASTFSS_CUDA_ARCHS), cuda:0 is sm_75"
            in (found.reasons["cuda"])
        )


def test_a_build_for_this_machines_gpu_serves_it(build):
    build.cuda_architectures = "native"
    assert pool(maps()).backend == "cuda"


def test_amds_gpus_are_left_to_triton(build, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert "AMD" in pool(maps()).reasons["cuda"]


def test_a_build_without_cuda_says_how_to_get_it():
    if _cuda_call.module is not None and _cuda_call.module.cuda_architectures is not None:
        pytest.skip("this build has CUDA kernels")
    x = torch.ones(1, 2, 3, 3)
    with pytest.raises(NotImplementedError, match=r"'cuda' cannot serve .* FASTFSS_CUDA_ARCHS"):
        masked_average_pool(x, x, backend="cuda")


def test_on_the_cpu_it_is_refused_with_the_device(build):
    with pytest.raises(NotImplementedError, match="a tensor is on cpu"):
        masked_average_pool(torch.ones(1, 2, 3, 3), torch.ones(1, 1, 3, 3), backend="cuda")


def test_an_operation_without_such_kernels_says_so(build):
    x = torch.ones(1, 2, 3)
    with pytest.raises(NotImplementedError, match="dense_match: there are no kernels of backend"):
        dense_match(x, x, backend="cuda")


def test_a_forced_backend_is_taken_although_another_comes_first(monkeypatch):
    taken = []
    for name, one in _forward.fast.items():
        run = lambda *a, name=name: taken.append(name) or torch.zeros(1, 1, 2)  # noqa: E731
        fake = type(one)(run, lambda *a: None)
        monkeypatch.setitem(_forward.fast, name, fake)
    x = torch.ones(1, 2, 3, 3)
    for backend in ("native", "cuda", "triton", "auto"):
        masked_average_pool(x, x[:, :1], backend=backend)  # type: ignore[arg-type]
    assert taken == ["native", "cuda", "triton", "native"]
