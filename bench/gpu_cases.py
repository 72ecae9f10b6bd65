"""What `bench.gpu` measures: each operation at its users' sizes, with the work that it must do.

`bytes` counts every input and output once; `flop` the products alone, of selected keys alone. The
published formulations are those that the tests compare with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from bench.flop import taps
from fastfss import ops
from fastfss.methods.hypercorrelation import CenterPivotConv4d, HypercorrelationLearner
from fastfss.ops.dense_correlation import dense_correlation_reference
from fastfss.ops.dense_match import dense_match_reference
from fastfss.ops.masked_average_pool import masked_average_pool_reference
from fastfss.ops.prototype_match import prototype_match_reference
from tests.methods.published_hsnet import published_learner
from tests.methods.published_ssp import published_self_support
from tests.published import (
    cosine_scores,
    dcama_attention,
    hsnet_correlation,
    panet_masked_average_pool,
    pfenet_prior,
    ssp_masked_average_pool,
)

Function = Callable[..., Any]


@dataclass(frozen=True)
class Case:
    """One operation at one size.

    Attributes:
        name: for the reader.
        inputs: a fresh random set of the arguments of the three functions, on a device.
        ours: the operation.
        published: as the paper's code computes it.
        reference: the plain PyTorch twin, to be compiled; None where it is not.
        work: in a dtype: bytes that must move, floating-point operations.
        by_triton: the operation by Triton, where there is a kernel in CUDA C++ too.
        by_cuda: the operation by that, where Triton may come first.
        products: its matrix products alone, by cuBLAS.
        tolerance: how many of the dtype's tolerances ours may differ from the published form.
    """

    name: str
    inputs: Callable[[torch.dtype, torch.device], tuple[Any, ...]]
    ours: Function
    published: Function
    reference: Function | None
    work: Callable[[torch.dtype], tuple[float, float]]
    by_triton: Function | None = None
    by_cuda: Function | None = None
    products: Function | None = None
    # Gradients and scores pass through two roundings of inputs.
    tolerance: float = 2


def _random(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.randn(shape, device=device).to(dtype)


def _maps(*shape: int, dtype: torch.dtype, device: torch.device, last: bool) -> Tensor:
    """Random (B, C, h, w), channels last in memory if `last`."""
    made = _random(*shape, dtype=dtype, device=device)
    return made.contiguous(memory_format=torch.channels_last) if last else made


def _layout(last: bool) -> str:
    return " channels last" if last else ""


def _chosen(share: float, *shape: int, device: torch.device) -> Tensor:
    """Bool, of exactly the share of positions, scattered; the same number in every item."""
    batch, *grid = shape
    order = torch.rand(batch, *grid, device=device).flatten(1).argsort(dim=1)
    count = round(share * order.shape[1])
    return (order < count).view(shape)


def pool(
    batch: int, channels: int, side: int, pixels: int, resize: str, *, last: bool = False
) -> Case:
    """Foreground and background of soft masks."""
    published = ssp_masked_average_pool if resize == "mask" else panet_masked_average_pool

    def inputs(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        features = _maps(batch, channels, side, side, dtype=dtype, device=device, last=last)
        foreground = _chosen(0.2, batch, pixels, pixels, device=device).float()
        return features, torch.stack([foreground, 1 - foreground], dim=1)

    def theirs(features: Tensor, masks: Tensor) -> Tensor:
        each = [published(features, masks[:, i].to(features.dtype)) for i in range(2)]
        return torch.stack(each, dim=1)

    def work(dtype: torch.dtype) -> tuple[float, float]:
        maps = batch * channels * side * side * dtype.itemsize
        return maps + batch * 2 * (pixels**2 * 4 + channels * dtype.itemsize), 0.0

    return Case(
        f"masked_average_pool {resize} {batch}x{channels}x{side}x{side}{_layout(last)}",
        inputs,
        lambda f, m: ops.masked_average_pool(f, m, resize=resize),  # type: ignore[arg-type]
        theirs,
        lambda f, m: masked_average_pool_reference(f, m, resize, True, 1e-5),  # type: ignore[arg-type]
        work,
        lambda f, m: ops.masked_average_pool(f, m, resize=resize, backend="triton"),  # type: ignore[arg-type]
    )


def prototypes(
    batch: int, channels: int, side: int, count: int, *, each: bool = False, last: bool = False
) -> Case:
    """Scores of `count` prototypes; `each`: one for every position."""

    def inputs(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        features = _maps(batch, channels, side, side, dtype=dtype, device=device, last=last)
        grid = (side, side) if each else ()
        return features, _random(batch, count, channels, *grid, dtype=dtype, device=device)

    def work(dtype: torch.dtype) -> tuple[float, float]:
        positions = batch * side * side
        maps = 1 + count if each else 1
        return positions * (maps * channels + count) * dtype.itemsize, 0.0

    kind = "each position" if each else "prototypes"
    return Case(
        f"prototype_match {count} {kind} {batch}x{channels}x{side}x{side}{_layout(last)}",
        inputs,
        lambda x, y: ops.prototype_match(x, y, scale=10.0),
        lambda x, y: cosine_scores(x, list(y.unbind(dim=1))),
        lambda x, y: prototype_match_reference(x, y, 10.0, 1e-8),
        work,
        None if each else lambda x, y: ops.prototype_match(x, y, scale=10.0, backend="triton"),
    )


def correlation(batch: int, channels: int, layers: int, side: int, *, last: bool = False) -> Case:
    """One of HSNet's levels."""

    def inputs(dtype: torch.dtype, device: torch.device) -> tuple[list[Tensor], list[Tensor]]:
        shape = (batch, channels, side, side)
        first, second = (
            [_maps(*shape, dtype=dtype, device=device, last=last) for _ in range(layers)]
            for _ in range(2)
        )
        return first, second

    def work(dtype: torch.dtype) -> tuple[float, float]:
        positions = side * side
        elements = batch * layers * (2 * channels * positions + positions**2)
        return elements * dtype.itemsize, 2.0 * batch * layers * channels * positions**2

    return Case(
        f"dense_correlation {layers} layers {batch}x{channels}x{side}x{side}{_layout(last)}",
        inputs,
        lambda q, s: ops.dense_correlation(q, s),
        hsnet_correlation,
        lambda q, s: dense_correlation_reference(q, s, True, 1e-5),
        work,
        lambda q, s: ops.dense_correlation(q, s, backend="triton"),
        by_cuda=lambda q, s: ops.dense_correlation(q, s, backend="cuda"),
        products=_correlation_products,
    )


def _correlation_products(queries: list[Tensor], supports: list[Tensor]) -> list[Tensor]:
    return [
        torch.bmm(query.flatten(2).mT, support.flatten(2))
        for query, support in zip(queries, supports, strict=True)
    ]


def self_support(batch: int, channels: int, side: int, share: float, *, last: bool = False) -> Case:
    """SSP's local background prototypes: one tensor in all places, 20 % foreground beside them."""

    def inputs(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        x = _maps(batch, channels, side, side, dtype=dtype, device=device, last=last)
        foreground = _chosen(0.2, batch, side, side, device=device)
        return x, foreground, _chosen(share, batch, side, side, device=device)

    def theirs(x: Tensor, foreground: Tensor, background: Tensor) -> Tensor:
        forced = list(zip(foreground.flatten(1), background.flatten(1), strict=True))
        scores = x.new_zeros(len(x), 2, *x.shape[2:])
        return published_self_support(x, scores, forced)[2]

    def work(dtype: torch.dtype) -> tuple[float, float]:
        positions = side * side
        flop = 4.0 * batch * channels * positions * round(share * positions)
        return 2.0 * batch * channels * positions * dtype.itemsize, flop

    return Case(
        f"dense_match SSP {share:.0%} of {batch}x{channels}x{side}x{side}{_layout(last)}",
        inputs,
        lambda x, _, background: ops.dense_match(x, x, mask=background, scale=2.0),
        theirs,
        lambda x, _, background: dense_match_reference(
            x, x, x, background.flatten(1), 2.0, True, "softmax", 1e-8
        ),
        work,
    )


def self_support_gradient(batch: int, channels: int, side: int, share: float) -> Case:
    """The same with its gradient."""
    forward = self_support(batch, channels, side, share)

    def gradient(function: Function) -> Function:
        def run(x: Tensor, foreground: Tensor, background: Tensor) -> Tensor:
            with torch.enable_grad():
                leaf = x.detach().requires_grad_()
                result = function(leaf, foreground, background)
                return torch.autograd.grad(result, leaf, x)[0]

        return run

    def work(dtype: torch.dtype) -> tuple[float, float]:
        # Forward two products, backward five.
        moved, flop = forward.work(dtype)
        return 2 * moved, flop / 2 * 7

    ours, theirs = gradient(forward.ours), gradient(forward.published)
    name = f"gradient of {forward.name}"
    return Case(name, forward.inputs, ours, theirs, None, work)


def prior(batch: int, channels: int, side: int, share: float) -> Case:
    """PFENet's prior: the largest cosine over the object's positions."""

    def inputs(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        shape = (batch, channels, side, side)
        maps = (_random(*shape, dtype=dtype, device=device) for _ in range(2))
        return (*maps, _chosen(share, batch, side, side, device=device))  # type: ignore[return-value]

    def work(dtype: torch.dtype) -> tuple[float, float]:
        positions = side * side
        read = (positions + round(share * positions)) * channels * dtype.itemsize
        return batch * read, 2.0 * batch * channels * positions * round(share * positions)

    def reference(q: Tensor, s: Tensor, mask: Tensor) -> Tensor:
        top = dense_match_reference(q, s, None, mask.flatten(1), 1.0, True, "max", 1e-8)
        return top.clamp_min(0)

    return Case(
        f"dense_match prior {share:.0%} of {batch}x{channels}x{side}x{side}",
        inputs,
        lambda q, s, m: ops.dense_match(q, s, mask=m, reduce="max").clamp_min(0),
        pfenet_prior,
        reference,
        work,
    )


def attention(heads: int, channels: int, side: int) -> Case:
    """DCAMA: scaled dot products, the support's mask as the value."""

    def inputs(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        shapes = [(heads, c, side, side) for c in (channels, channels, 1)]
        q, k, v = (_random(*shape, dtype=dtype, device=device) for shape in shapes)
        return q, k, v.sigmoid()

    scale = channels**-0.5

    def work(dtype: torch.dtype) -> tuple[float, float]:
        positions = side * side
        moved = heads * positions * (2 * channels + 2) * dtype.itemsize
        return moved, 2.0 * heads * (channels + 1) * positions**2

    return Case(
        f"dense_match attention {heads}x{channels}x{side}x{side}",
        inputs,
        lambda q, k, v: ops.dense_match(q, k, v, scale=scale, normalize=False),
        dcama_attention,
        lambda q, k, v: dense_match_reference(q, k, v, None, scale, False, "softmax", 1e-8),
        work,
    )


@cache
def _learner(dtype: torch.dtype, device: torch.device) -> HypercorrelationLearner:
    torch.manual_seed(0)
    made = HypercorrelationLearner((4, 6, 3), "square").eval().requires_grad_(False)
    made = made.to(device=device, dtype=dtype, memory_format=torch.channels_last)
    for part in made.modules():
        if isinstance(part, CenterPivotConv4d):
            part.arrange_()  # as for_inference does
    return made


def learner(batch: int, grids: tuple[int, int, int] = (50, 25, 13)) -> Case:
    """HSNet's learner (ResNet-50) behind given correlations."""

    def inputs(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
        levels = []
        for side, layers in zip(grids, (4, 6, 3), strict=True):
            # As dense_correlation writes them.
            made = torch.rand(batch, layers, side, side, side, side, device=device)
            levels.append(made.to(dtype))
        return tuple(levels)

    def ours(*levels: Tensor) -> Tensor:
        return _learner(levels[0].dtype, levels[0].device)(*levels)  # type: ignore[no-any-return]

    def theirs(*levels: Tensor) -> Tensor:
        plain = [one.contiguous() for one in levels]
        return published_learner(_learner(levels[0].dtype, levels[0].device), plain)

    def work(dtype: torch.dtype) -> tuple[float, float]:
        moved = sum(n * side**4 for side, n in zip(grids, (4, 6, 3), strict=True))
        return float(batch * moved * dtype.itemsize), batch * _learner_flop(grids)

    name = f"center_pivot_conv4d HSNet's learner {batch}x{grids[0]}x{grids[0]}"
    # Fourteen blocks and a decoder after each other round to 16 bits.
    return Case(name, inputs, ours, theirs, None, work, tolerance=8)


def _learner_flop(grids: tuple[int, int, int]) -> float:
    """Multiply-adds twice, of the taps inside the grids."""
    model, total = _learner(torch.float32, torch.device("cpu")), 0.0
    fine, middle, coarse = grids
    blocks = {
        "encoder_layer2": (fine, fine),
        "encoder_layer3": (middle, middle),
        "encoder_layer4": (coarse, coarse),
        "encoder_layer4to3": (middle, None),
        "encoder_layer3to2": (fine, None),
    }
    left = 0  # of the support, behind the blocks so far
    for block, (query, support) in blocks.items():
        left = support or left
        for conv in model.get_submodule(block).children():
            if isinstance(conv, CenterPivotConv4d):
                outputs, inputs, kernel, _ = conv.conv1.weight.shape
                total += 2 * inputs * outputs * (query * taps(left, kernel, conv.stride)) ** 2
                left = -(-left // conv.stride)
                total += 2 * inputs * outputs * (left * taps(query, kernel, 1)) ** 2
    decoder = (128 * 128 + 128 * 64) + 4 * (64 * 64 + 64 * 2)
    return total + 2 * 9 * fine**2 * decoder


CASES = (
    pool(1, 1024, 60, 473, "mask"),
    pool(16, 1024, 60, 473, "mask"),
    pool(1, 512, 60, 473, "features"),
    prototypes(1, 1024, 60, 2),
    prototypes(16, 1024, 60, 2),
    prototypes(1, 1024, 60, 10),
    prototypes(4, 1024, 60, 1, each=True),
    correlation(1, 2048, 3, 13),
    correlation(1, 1024, 6, 25),
    correlation(1, 512, 4, 50),
    self_support(1, 1024, 60, 0.75),
    self_support(4, 1024, 60, 0.75),
    prior(1, 2048, 60, 0.18),
    attention(8, 64, 48),
    # At batches that fill the card.
    pool(16, 1024, 60, 473, "mask", last=True),
    prototypes(16, 1024, 60, 2, last=True),
    correlation(8, 2048, 3, 13, last=True),
    correlation(8, 1024, 6, 25, last=True),
    correlation(8, 512, 4, 50, last=True),
    self_support(8, 1024, 60, 0.75),
    self_support(8, 1024, 60, 1.0),
    self_support(8, 1024, 60, 1.0, last=True),
    self_support(32, 1024, 60, 0.75, last=True),
    prior(8, 2048, 60, 0.18),
    learner(1),
    learner(8),
    self_support_gradient(1, 1024, 60, 0.75),
    self_support_gradient(8, 1024, 60, 0.75),
)
