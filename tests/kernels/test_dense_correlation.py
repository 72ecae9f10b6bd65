from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from fastfss.ops import _cuda_call, dense_correlation
from fastfss.ops.dense_correlation import dense_correlation_reference
from tests.kernels.helpers import assert_like_plain, captured, double, gradients, laid_out, random
from tests.tolerances import assert_close


def maps(
    channels: list[int], grid: tuple[int, int], *, seed: int, layout: str = "first", batch: int = 2
) -> list[Tensor]:
    return [laid_out(random(batch, c, *grid, seed=seed + c), layout) for c in channels]


def exact(queries: list[Tensor], supports: list[Tensor], clamp: bool = True) -> Tensor:
    return dense_correlation_reference(double(*queries), double(*supports), clamp, 1e-5)


@pytest.mark.parametrize("layout", ["first", "last", "cut"])
@pytest.mark.parametrize(
    ("channels", "query", "support", "clamp"),
    [([1], (1, 1), (1, 1), False), ([21, 5], (5, 7), (3, 6), True), ([48], (4, 4), (4, 8), True)],
    ids=["one", "odd", "whole tiles"],
)
def test_it_equals_the_reference(device, dtype, channels, query, support, clamp, layout):
    q = [m.to(dtype).to(device) for m in maps(channels, query, seed=0, layout=layout)]
    s = [m.to(dtype).to(device) for m in maps(channels, support, seed=1, layout=layout)]
    result = dense_correlation(q, s, clamp=clamp, backend="triton")
    assert result.dtype == dtype
    assert_close(result.cpu(), exact(q, s, clamp))


def test_more_layers_than_one_launch_takes(device):
    channels = [3, 4, 5, 6, 7, 8, 9, 10, 11]
    q, s = ([m.to(device) for m in maps(channels, (2, 2), seed=x, batch=1)] for x in (0, 50))
    assert_close(dense_correlation(q, s, backend="triton").cpu(), exact(q, s))


def test_layers_of_every_layout_in_one_call(device):
    channels, layouts = [21, 1, 40, 5], ["last", "first", "last", "cut"]
    sides = []
    for grid, seed in (((5, 7), 0), ((3, 6), 50)):
        made = [
            laid_out(random(3, c, *grid, seed=seed + c), one)
            for c, one in zip(channels, layouts, strict=True)
        ]
        sides.append([m.to(device) for m in made])
        layouts = layouts[::-1]
    result = dense_correlation(*sides, backend="triton")
    assert_close(result.cpu(), exact(*sides))


def test_empty_positions_correlate_with_nothing(device):
    (q,), (s,) = maps([6], (3, 3), seed=0), maps([6], (3, 3), seed=1)
    s[:, :, 1:] = 0
    result = dense_correlation([q.to(device)], [s.to(device)], backend="triton")
    assert result[..., 1:, :].abs().max() == 0
    assert result[..., :1, :].abs().max() > 0


def test_nan_stays_where_it_belongs(device):
    (q,), (s,) = maps([6], (3, 3), seed=0), maps([6], (3, 3), seed=1)
    q[0, 0, 1, 1] = float("nan")
    result = dense_correlation([q.to(device)], [s.to(device)], backend="triton")
    assert result[0, 0, 1, 1].isnan().all()
    assert int(result.isnan().sum()) == 9


def test_gradients_equal_the_references(device):
    tensors = [m.to(device) for x in (0, 50) for m in maps([5, 8], (2, 3), seed=x)]
    along = [random(2, 2, 2, 3, 2, 3)]

    def function(*maps: Tensor, backend: str = "triton") -> Tensor:
        return dense_correlation(maps[:2], maps[2:], backend=backend)  # type: ignore[arg-type]

    ours = gradients(function, tensors, along)
    wanted = gradients(lambda *m: function(*m, backend="reference"), double(*tensors), along)
    for mine, right in zip(ours, wanted, strict=True):
        assert_close(mine.cpu(), right)


def test_opcheck(device):
    q = [m.to(device).requires_grad_() for m in maps([4, 3], (3, 2), seed=0)]
    s = [m.to(device).requires_grad_() for m in maps([4, 3], (2, 5), seed=1)]
    torch.library.opcheck(torch.ops.fastfss.dense_correlation.default, (q, s, True, 1e-5))


# ---- On a GPU, at real sizes

LEVELS = [(2048, 3, 13), (1024, 6, 25), (512, 4, 50)]  # HSNet, ResNet-50 at 400 px


@pytest.mark.gpu
@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize(("channels", "layers", "side"), LEVELS)
@pytest.mark.parametrize("batch", [1, 4])
def test_real_sizes(device, batch, channels, layers, side, dtype, layout):
    def made(seed: int) -> list[Tensor]:
        maps = [random(batch, channels, side, side, seed=seed + i).cuda() for i in range(layers)]
        return [laid_out(m.to(dtype), layout) for m in maps]

    q, s = made(0), made(100)
    wanted = dense_correlation_reference(
        [m.double() for m in q], [m.double() for m in s], True, 1e-5
    )
    plain = dense_correlation_reference(q, s, True, 1e-5)
    # Which comes first depends on the dtype and the GPU.
    for backend in ("triton", "cuda") if _cuda_call.why_not_cuda(*q, *s) is None else ("triton",):
        call = partial(dense_correlation, q, s, backend=backend)
        result = call()
        assert_close(result, wanted)
        assert_like_plain(result, plain, wanted)
        assert torch.equal(call(), result)
        assert torch.equal(captured(call)(), result)


@pytest.mark.gpu
def test_it_equals_eager_when_compiled(device):
    q, s = ([m.cuda() for m in maps([32, 16], (9, 8), seed=x)] for x in (0, 50))
    compiled = torch.compile(dense_correlation, fullgraph=True)
    assert torch.equal(compiled(q, s), dense_correlation(q, s))
