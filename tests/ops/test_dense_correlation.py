from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastfss.ops import _native_call, dense_correlation, explain
from fastfss.ops.dense_correlation import dense_correlation_into, dense_correlation_reference
from tests.published import hsnet_correlation
from tests.tolerances import assert_close

native = pytest.mark.skipif(_native_call.module is None, reason="built without native code")

# channels of the layers, query grid, support grid: panels are 48 positions, blocks 192
SHAPES = [
    ([1], (1, 1), (1, 1)),
    ([5, 3], (7, 5), (3, 4)),
    ([64], (7, 7), (7, 7)),
    ([33, 16], (13, 17), (15, 14)),
    ([200], (4, 12), (4, 12)),
]


def maps(
    channels: list[int], grid: tuple[int, int], dtype: torch.dtype, *, batch: int = 2, seed: int = 0
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, c, *grid, generator=generator).to(dtype) for c in channels]


@pytest.mark.parametrize("clamp", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("channels", "query", "support"), SHAPES)
def test_native_equals_float64(
    isa: str,
    channels: list[int],
    query: tuple[int, int],
    support: tuple[int, int],
    dtype: torch.dtype,
    clamp: bool,
) -> None:
    q, s = maps(channels, query, dtype), maps(channels, support, dtype, seed=1)
    exact = dense_correlation_reference(
        [m.double() for m in q], [m.double() for m in s], clamp, 1e-5
    )
    ours = dense_correlation(q, s, clamp=clamp, backend="native")
    assert ours.dtype == dtype
    assert_close(ours, exact)
    plain = dense_correlation_reference(q, s, clamp, 1e-5)
    error, bound = ((r.double() - exact).abs().max() for r in (ours, plain))
    assert error <= 2 * bound + 1e-6, "more than twice the error of plain PyTorch"


@native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_channels_last_and_strided_maps_give_the_same(dtype: torch.dtype) -> None:
    q, s = maps([19, 40], (9, 11), dtype), maps([19, 40], (6, 10), dtype, seed=1)
    expected = dense_correlation(q, s, backend="native")
    last = [[m.to(memory_format=torch.channels_last) for m in side] for side in (q, s)]
    assert_close(dense_correlation(*last, backend="native"), expected)
    wide = [[torch.cat([m, m], dim=3)[..., : m.shape[3]] for m in side] for side in (q, s)]
    assert_close(dense_correlation(*wide, backend="native"), expected)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_into_memory_of_any_strides_is_the_same(dtype: torch.dtype) -> None:
    q, s = maps([19, 40], (9, 11), dtype), maps([19, 40], (6, 10), dtype, seed=1)
    expected = dense_correlation(q, s)
    for shape in ((2, 2, 9, 11, 6, 10), (5, 3, 12, 11, 6, 10), (2, 2, 9, 12, 6, 10)):
        wide = torch.full(shape, torch.nan, dtype=dtype)
        dense_correlation_into(wide[:2, :2, :9, :11], q, s)
        assert torch.equal(wide[:2, :2, :9, :11], expected)
        assert int(wide.isnan().sum()) == wide.numel() - expected.numel()
    box = torch.full((2, 2, 9, 11, 8, 12), torch.nan, dtype=dtype)
    dense_correlation_into(box[..., 1:7, 2:], q, s)
    assert torch.equal(box[..., 1:7, 2:], expected)
    assert int(box.isnan().sum()) == box.numel() - expected.numel()
    one_item = [m[:1].expand(2, -1, -1, -1) for m in q]
    assert torch.equal(
        dense_correlation(one_item, s)[1:],
        dense_correlation([m[:1] for m in q], [m[1:] for m in s]),
    )


def test_memory_of_another_shape_is_named() -> None:
    q = maps([3], (2, 2), torch.float32)
    with pytest.raises(
        ValueError, match=r"out: expected \(2, 1, 2, 2, 2, 2\), got \(2, 1, 2, 2, 4\)"
    ):
        dense_correlation_into(torch.empty(2, 1, 2, 2, 4), q, q)


@native
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_do_not_change_the_result(threads: int) -> None:
    q, s = maps([16], (20, 20), torch.float32), maps([16], (21, 19), torch.float32, seed=1)
    expected = dense_correlation(q, s)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert torch.equal(dense_correlation(q, s), expected)
    finally:
        torch.set_num_threads(before)


@native
def test_emulated_tiles_equal_the_reference() -> None:
    """The AMX path's packing and indexing, with the tiles in plain C++."""
    (q,), (s,) = maps([70], (7, 9), torch.bfloat16), maps([70], (8, 13), torch.bfloat16, seed=1)
    out = torch.full((2, 63, 104), float("nan"), dtype=torch.bfloat16)
    assert _native_call.module is not None
    views = [_native_call.view(t) for t in (q.flatten(2), s.flatten(2), out)]
    _native_call.module.dense_correlation(*views, 1e-5, True, 1, True)
    exact = dense_correlation_reference([q.double()], [s.double()], True, 1e-5)
    assert_close(out.view(2, 1, 7, 9, 8, 13), exact)


@pytest.mark.usefixtures("poisoned_memory")
def test_every_output_is_written() -> None:
    q, s = maps([8], (5, 7), torch.float32), maps([8], (3, 3), torch.float32, seed=1)
    assert not dense_correlation(q, s).isnan().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_masked_out_supports_correlate_with_nothing(dtype: torch.dtype) -> None:
    q, s = maps([6], (3, 3), dtype), maps([6], (3, 3), dtype, seed=1)
    s[0][:, :, 1:] = 0
    result = dense_correlation(q, s)
    assert result[..., 1:, :].abs().max() == 0
    assert result[..., :1, :].abs().max() > 0


def test_nan_stays_where_it_belongs() -> None:
    q, s = maps([6], (3, 3), torch.float32), maps([6], (3, 3), torch.float32, seed=1)
    q[0][0, 0, 1, 1] = float("nan")
    result = dense_correlation(q, s)
    assert result[0, 0, 1, 1].isnan().all()
    assert int(result.isnan().sum()) == 9


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_any_batch(batch: int) -> None:
    q = maps([4, 9], (5, 6), torch.float32, batch=batch)
    s = maps([4, 9], (7, 2), torch.float32, batch=batch, seed=1)
    assert_close(dense_correlation(q, s), dense_correlation(q, s, backend="reference"))


def test_it_equals_the_published_formulation() -> None:
    q, s = maps([32, 16], (8, 8), torch.float32), maps([32, 16], (8, 8), torch.float32, seed=1)
    assert_close(dense_correlation(q, s), hsnet_correlation(q, s))


@pytest.mark.parametrize("clamp", [True, False])
def test_gradcheck_in_double(clamp: bool) -> None:
    q = [m.requires_grad_() for m in maps([3, 2], (2, 3), torch.float64)]
    s = [m.requires_grad_() for m in maps([3, 2], (3, 2), torch.float64, seed=1)]

    def function(*inputs: Tensor) -> Tensor:
        return dense_correlation(inputs[:2], inputs[2:], clamp=clamp)

    assert torch.autograd.gradcheck(function, (*q, *s))


@pytest.mark.parametrize("zero", [False, True], ids=["", "with empty columns"])
def test_the_gradient_equals_autograd_through_the_reference(zero: bool) -> None:
    leaves = []
    for _ in range(2):
        q, s = maps([5, 8], (6, 4), torch.float32), maps([5, 8], (4, 7), torch.float32, seed=1)
        if zero:
            s[0][:, :, 2] = 0
        leaves.append([m.requires_grad_() for m in (*q, *s)])
    weights = torch.randn(2, 2, 6, 4, 4, 7, generator=torch.Generator().manual_seed(2))
    for inputs, backend in zip(leaves, ("auto", "reference"), strict=True):
        result = dense_correlation(inputs[:2], inputs[2:], backend=backend)  # type: ignore[arg-type]
        (result * weights).sum().backward()
    for ours, theirs in zip(*leaves, strict=True):
        assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(dtype: torch.dtype, requires_grad: bool) -> None:
    q = [m.requires_grad_(requires_grad) for m in maps([4, 3], (3, 2), dtype)]
    s = [m.requires_grad_(requires_grad) for m in maps([4, 3], (2, 5), dtype, seed=1)]
    torch.library.opcheck(torch.ops.fastfss.dense_correlation.default, (q, s, True, 1e-5))


def test_compiled_equals_eager() -> None:
    q, s = maps([4, 3], (3, 2), torch.float32), maps([4, 3], (2, 5), torch.float32, seed=1)
    compiled = torch.compile(dense_correlation, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(q, s), dense_correlation(q, s))


def test_explain_names_the_backend_and_the_reasons() -> None:
    q = maps([4], (3, 2), torch.float64)
    explanation = explain("dense_correlation", q, q)
    assert explanation.backend == "reference"
    reason = explanation.reasons["native"]
    assert "float64" in reason or "no native" in reason


@pytest.mark.parametrize(
    ("q", "s", "error", "message"),
    [
        ([], [], ValueError, "queries and supports: expected as many maps each"),
        (maps([3], (2, 2), torch.float32), [], ValueError, "got 1 and 0"),
        (
            maps([3], (2, 2), torch.float32),
            maps([4], (2, 2), torch.float32),
            ValueError,
            r"supports\[0\]: expected batch and channels \(2, 3\)",
        ),
        (
            [torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 3)],
            [torch.zeros(1, 3, 2, 2)] * 2,
            ValueError,
            r"queries\[1\]: expected \(B, C, h, w\) of the batch and grid",
        ),
        ([torch.zeros(3, 2, 2)], [torch.zeros(3, 2, 2)], ValueError, r"queries\[0\]"),
        (
            [torch.zeros(1, 3, 2, 2)],
            [torch.zeros(1, 3, 2, 2, dtype=torch.float64)],
            ValueError,
            r"supports\[0\]: expected torch.float32",
        ),
        ([torch.zeros(1, 3, 2, 2).int()], [torch.zeros(1, 3, 2, 2)], TypeError, r"queries\[0\]"),
    ],
    ids=["none", "count", "channels", "grid", "rank", "dtype", "integers"],
)
def test_bad_input_is_named(
    q: list[Tensor], s: list[Tensor], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        dense_correlation(q, s)


def test_a_forced_backend_that_cannot_serve_says_why() -> None:
    q = maps([4], (3, 2), torch.float64)
    with pytest.raises(NotImplementedError, match="backend 'native' cannot serve"):
        dense_correlation(q, q, backend="native")
