"""Every GPU kernel at small, ragged sizes, for the tools that watch memory and races.

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck python -m tests.gpu_sweep

Without the caching allocator every tensor is an allocation of its own, so that a read behind its
end is seen.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fastfss import ops
from tests.kernels.helpers import laid_out, random, weights

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LAYOUTS = ("first", "last", "cut")


def _maps(dtype: torch.dtype, layout: str, *shape: int, seed: int = 0) -> Tensor:
    return laid_out(random(*shape, seed=seed), layout).to(dtype).cuda()


def _forward(dtype: torch.dtype, layout: str, backend: str) -> Iterator[Tensor]:
    """Each operation once or twice."""
    maps = _maps(dtype, layout, 2, 72, 9, 11)
    masks = weights(2, 5, 37, 41).cuda()
    for resize in ("mask", "features"):
        yield ops.masked_average_pool(maps, masks, resize=resize, backend=backend)  # type: ignore[arg-type]
    for count in (2, 11):
        prototypes = random(2, count, 72, seed=1).to(dtype).cuda()
        yield ops.prototype_match(maps, prototypes, backend=backend)  # type: ignore[arg-type]
    queries = [_maps(dtype, layout, 2, c, 9, 11, seed=c) for c in (24, 41)]
    supports = [_maps(dtype, layout, 2, c, 12, 13, seed=c) for c in (24, 41)]
    yield ops.dense_correlation(queries, supports, backend=backend)  # type: ignore[arg-type]


def _triton_alone(dtype: torch.dtype, layout: str) -> Iterator[Tensor]:
    """Operations that have no kernel in CUDA C++, and gradients."""
    maps = _maps(dtype, layout, 2, 72, 9, 11).requires_grad_()
    keys = _maps(dtype, layout, 2, 72, 7, 13, seed=1).requires_grad_()
    mask = weights(2, 7, 13).cuda()
    for channels in (1, 72, 272):
        values = _maps(dtype, layout, 2, channels, 7, 13, seed=2).requires_grad_()
        for scale in (2.0, 60.0):
            matched = ops.dense_match(maps, keys, values, mask=mask, scale=scale)
            yield matched.detach()
            yield from torch.autograd.grad(matched.float().sum(), (maps, keys, values))
    yield ops.dense_match(maps, keys, mask=mask, reduce="max").detach()
    prototypes = random(2, 2, 72, seed=1).to(dtype).cuda().requires_grad_()
    scores = ops.prototype_match(maps, prototypes)
    yield from torch.autograd.grad(scores.float().sum(), (maps, prototypes))
    each = random(2, 2, 72, 9, 11, seed=1).to(dtype).cuda().requires_grad_()
    scores = ops.prototype_match(maps, each)
    yield from torch.autograd.grad(scores.float().sum(), (maps, each))
    masks = weights(2, 5, 37, 41).cuda().requires_grad_()
    pooled = ops.masked_average_pool(maps, masks)
    yield from torch.autograd.grad(pooled.float().sum(), (maps, masks))


def _convolutions(dtype: torch.dtype) -> Iterator[Tensor]:
    shapes = ((3, 16, 3, 2), (4, 16, 5, 4), (6, 16, 5, 4), (32, 64, 3, 1), (16, 64, 5, 4))
    for inputs, outputs, kernel, stride in shapes:
        x = random(2, 5, 6, 7, 9, inputs).to(dtype).cuda().permute(0, 5, 1, 2, 3, 4)
        both = [random(outputs, inputs, kernel, kernel, seed=s).to(dtype).cuda() for s in (1, 2)]
        bias = random(outputs, seed=3).to(dtype).cuda()
        # In planes too, of even and odd rows: few channels then go to csrc/cuda in 16 bits.
        for maps in (x, x.contiguous(), x[..., :8].contiguous()):
            yield ops.center_pivot_block(
                maps, both[0], bias, both[1], bias, bias, bias, stride=stride, groups=4, eps=1e-5
            )


PARTS = ("cuda", "triton", "alone", "convolutions")


def _part(part: str, dtype: torch.dtype) -> Iterator[Tensor]:
    if part == "convolutions":
        yield from _convolutions(dtype)
        return
    for layout in LAYOUTS:
        if part == "alone":
            yield from _triton_alone(dtype, layout)
        else:
            yield from _forward(dtype, layout, part)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all, or the parts and dtypes that the arguments name: `convolutions float16`."""
    given = sys.argv[1:] if arguments is None else arguments
    dtypes = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES}
    if unknown := set(given) - {*PARTS, *dtypes}:
        print(f"expected some of {', '.join((*PARTS, *dtypes))}, got {', '.join(unknown)}")
        return 2
    parts = [part for part in PARTS if part in given] or PARTS
    names = [name for name in dtypes if name in given] or dtypes
    results = sum(sum(1 for _ in _part(part, dtypes[name])) for name in names for part in parts)
    torch.cuda.synchronize()
    print(f"{results} results")
    return 0


if __name__ == "__main__":
    sys.exit(main())
