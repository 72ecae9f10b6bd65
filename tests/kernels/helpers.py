"""Inputs of the kernels' tests, and what they are compared with: the references in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tests.tolerances import assert_at_most_twice_the_error

Results = Tensor | tuple[Tensor, ...]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def laid_out(maps: Tensor, layout: str) -> Tensor:
    """The same (B, C, h, w), channels "first" or "last", or "cut" out of a wider map."""
    if layout == "last":
        return maps.contiguous(memory_format=torch.channels_last)
    if layout == "cut":
        return torch.cat([maps, maps], dim=3)[..., : maps.shape[3]]
    return maps.contiguous()


def weights(*shape: int, share: float = 0.7, seed: int = 3) -> Tensor:
    """Soft weights, zero in 1 - share of the positions; the first position always has one."""
    generator = torch.Generator().manual_seed(seed)
    made = torch.rand(shape, generator=generator) + 0.1
    made = made * (torch.rand(shape, generator=generator) < share)
    made.flatten(1)[:, 0] = 0.5
    return made


def double(*tensors: Tensor) -> list[Tensor]:
    """On the CPU in float64."""
    return [tensor.detach().cpu().double() for tensor in tensors]


def gradients(
    function: Callable[..., Results], tensors: Sequence[Tensor], directions: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Of the results' dot products with the directions, by the tensors."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    results = function(*leaves)
    results = (results,) if isinstance(results, Tensor) else results
    along = [d.to(r) for d, r in zip(directions, results, strict=True)]
    return torch.autograd.grad(results, leaves, along)


def assert_like_plain(ours: Tensor, plain: Tensor, exact: Tensor) -> None:
    """In 16 bits at most twice the error of plain PyTorch.

    float32 has the bound of tests/tolerances.py alone: three tf32 products round otherwise than
    the float32 units, by about as much.
    """
    if ours.dtype != torch.float32:
        assert_at_most_twice_the_error(ours, plain, exact)


def captured(function: Callable[[], Any]) -> Callable[[], Any]:
    """A CUDA graph of the call: capturing fails on anything that waits for the GPU."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = function()

    def replay() -> Any:
        graph.replay()
        return result

    return replay
