"""Gradients, torch.compile, opcheck and messages of dense_match and dense_match_sums."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastfss.ops import _dense_match_backward, _native_call, dense_match, dense_match_sums, explain
from tests.ops.test_dense_match import BACKENDS, DTYPES, maps, native, weights
from tests.tolerances import assert_close

OPTIONS: list[dict[str, Any]] = [
    {"scale": 5.0},
    {"scale": 0.7, "normalize": False},
    {"scale": 2.0, "reduce": "max"},
]
IDS = ["cosine", "dot", "max"]


@pytest.fixture(params=[_dense_match_backward.BLOCK, 500], ids=["one_block", "many_blocks"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_dense_match_backward, "BLOCK", request.param)


def gradients(result: Tensor | tuple[Tensor, ...], *inputs: Tensor) -> list[Tensor]:
    """Of a fixed random combination of all results."""
    results = result if isinstance(result, tuple) else (result,)
    directions = [maps(1, r.shape[1:], r.dtype, seed=9, batch=len(r))[:, 0] for r in results]
    total = sum(((r * d).sum() for r, d in zip(results, directions, strict=True)), torch.zeros(()))
    return list(torch.autograd.grad(total, inputs))


def leaves(*tensors: Tensor) -> list[Tensor]:
    return [t.detach().clone().requires_grad_() for t in tensors]


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("masked", [True, False], ids=["mask", "no_mask"])
@pytest.mark.parametrize("last", [False, True], ids=["channels_first", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=IDS)
def test_gradient_equals_the_references(
    options: dict[str, Any], dtype: torch.dtype, last: bool, masked: bool
) -> None:
    tensors = [maps(12, (9, 7), dtype, last=last), maps(12, (8, 11), dtype, seed=1, last=last)]
    if "reduce" not in options:
        tensors.append(maps(5, (8, 11), dtype, seed=2, last=last))
    m = weights((8, 11)) if masked else None
    ours, wide = leaves(*tensors), leaves(*(t.double() for t in tensors))
    fast = dense_match(*ours, mask=m, **options)
    exact = dense_match(*wide, mask=m, **options, backend="reference")
    for mine, right, leaf in zip(
        gradients(fast, *ours), gradients(exact, *wide), tensors, strict=True
    ):
        assert mine.dtype == dtype and mine.stride() == leaf.stride()
        assert_close(mine, right)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradient_of_sums_equals_the_references(dtype: torch.dtype) -> None:
    tensors = [maps(12, (9, 7), dtype), maps(12, (8, 11), dtype, seed=1), maps(5, (8, 11), dtype)]
    w = weights((8, 11)) * (maps(1, (8, 11), seed=4)[:, 0] + 0.5).sign()
    ours, wide = leaves(*tensors), leaves(*(t.double() for t in tensors))
    fast = dense_match_sums(*ours, w, scale=2.0)
    exact = dense_match_sums(*wide, w, scale=2.0, backend="reference")
    for mine, right in zip(gradients(fast, *ours), gradients(exact, *wide), strict=True):
        assert_close(mine, right)
    only = gradients(dense_match_sums(*ours, w, scale=2.0)[1], *ours[:2])
    wanted = gradients(dense_match_sums(*wide, w, scale=2.0, backend="reference")[1], *wide[:2])
    for mine, right in zip(only, wanted, strict=True):
        assert_close(mine, right)


def test_one_tensor_in_all_places_gets_the_sum_of_its_gradients() -> None:
    m = weights((9, 8))
    (x,), (wide,) = leaves(maps(7, (9, 8))), leaves(maps(7, (9, 8)).double())
    ours = dense_match(x, x, x, m, scale=2.0), *dense_match_sums(x, x, x, m, scale=2.0)
    exact = (
        dense_match(wide, wide, wide, m, scale=2.0, backend="reference"),
        *dense_match_sums(wide, wide, wide, m, scale=2.0, backend="reference"),
    )
    assert_close(gradients(ours, x)[0], gradients(exact, wide)[0])


def test_inputs_without_gradient_get_none() -> None:
    q, k = maps(4, (3, 3)), maps(4, (4, 4), seed=1)
    (v,) = leaves(maps(2, (4, 4), seed=2))
    assert_close(
        gradients(dense_match(q, k, v), v)[0],
        gradients(dense_match(q, k, v, backend="reference"), v)[0],
    )


def test_empty_mask_and_zero_vectors_have_finite_gradients() -> None:
    q, k = leaves(maps(4, (3, 3)), maps(4, (4, 4), seed=1))
    with torch.no_grad():
        q[:, :, 0, 0] = 0
        k[:, :, 1, 1] = 0
    m = torch.ones(2, 4, 4)
    m[1] = 0
    for options in OPTIONS:
        for grad in gradients(dense_match(q, k, mask=m, **options), q, k):
            assert grad.isfinite().all()
            assert grad[1].abs().max() == 0


@pytest.mark.parametrize("options", OPTIONS, ids=IDS)
def test_gradcheck_in_double(options: dict[str, Any]) -> None:
    tensors = [maps(3, (2, 3), torch.float64), maps(3, (3, 2), torch.float64, seed=1)]
    if "reduce" not in options:
        tensors.append(maps(2, (3, 2), torch.float64, seed=2))
    m = weights((3, 2), share=0.6)
    assert torch.autograd.gradcheck(lambda *t: dense_match(*t, mask=m, **options), leaves(*tensors))


def test_gradcheck_of_sums_in_double() -> None:
    tensors = [maps(3, (2, 3), torch.float64), maps(3, (3, 2), torch.float64, seed=1)]
    tensors.append(maps(2, (3, 2), torch.float64, seed=2))
    w = weights((3, 2)) - 0.4
    assert torch.autograd.gradcheck(lambda *t: dense_match_sums(*t, w, scale=2.0), leaves(*tensors))


# ---- torch's own machinery


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("last", [False, True], ids=["channels_first", "channels_last"])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_opcheck(dtype: torch.dtype, last: bool, requires_grad: bool) -> None:
    q, k = maps(6, (5, 4), dtype, last=last), maps(6, (3, 7), dtype, seed=1, last=last)
    v, m = maps(3, (3, 7), dtype, seed=2, last=last), weights((3, 7)).flatten(1).to(dtype)
    m = m.to(torch.promote_types(dtype, torch.float32))
    for t in (q, k, v):
        t.requires_grad_(requires_grad)
    ops = torch.ops.fastfss
    # test_aot_dispatch_dynamic compares gradients with torch's own tolerances.
    torch.library.opcheck(ops.dense_match.default, (q, k, v, m, 2.0, True, "softmax", 1e-8))
    torch.library.opcheck(ops.dense_match.default, (q, k, None, None, 2.0, False, "max", 1e-8))
    torch.library.opcheck(ops.dense_match_sums.default, (q, k, v, m, 2.0, 1e-8))
    if requires_grad:
        return
    g, everything = maps(3, (5, 4), dtype, last=last), [True, True, True]
    torch.library.opcheck(
        ops.dense_match_backward.default,
        (g, q, k, v, m, 2.0, True, "softmax", 1e-8, everything),
    )
    torch.library.opcheck(
        ops.dense_match_sums_backward.default,
        (g, g[:, 0].clone(), q, k, v, m, 2.0, 1e-8, everything),
    )


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiles_into_one_graph_with_its_gradient(backend: str) -> None:
    m = weights((6, 5))

    def step(x: Tensor, y: Tensor) -> Tensor:
        x = x * 2
        numerator, denominator = dense_match_sums(x, x, x, m, scale=2.0)
        best = dense_match(x, y, mask=m > 0, reduce="max")
        own = numerator / denominator.unsqueeze(1) + dense_match(x, y, mask=m) * best.unsqueeze(1)
        return own.square().sum()

    compiled = torch.compile(step, fullgraph=True, backend=backend)
    results = []
    for function in (step, compiled):
        inputs = leaves(maps(5, (6, 5)), maps(5, (6, 5), seed=1))
        value = function(*inputs)
        results.append((value, *torch.autograd.grad(value, inputs)))
    for eager, graph in zip(*results, strict=True):
        assert_close(graph, eager)


def test_compiled_calls_tell_one_tensor_from_its_copy() -> None:
    """The native code sees aliases by their addresses, at every call anew."""
    m = weights((21, 19))

    @torch.compile(fullgraph=True, backend="aot_eager")
    def call(x: Tensor, y: Tensor) -> Tensor:
        return dense_match(x, y, mask=m, scale=2.0)

    x, y = maps(5, (21, 19)), maps(5, (21, 19), seed=1)
    for a, b in ((x, x), (x, y), (y, y), (y, x), (x, x.clone())):
        assert_close(call(a, b), dense_match(a, b, mask=m, scale=2.0, backend="reference"))


# ---- Messages


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"query": torch.ones(3, 4)},
            r"query: expected \(B, channels, \*positions\).* got \(3, 4\)",
        ),
        ({"key": torch.ones(2, 5, 3, 3)}, r"key: expected 4 channels .* got \(2, 5, 3, 3\)"),
        ({"key": torch.ones(1, 4, 3, 3)}, r"key: expected .* batch, got \(1, 4, 3, 3\)"),
        ({"key": torch.ones(2, 4, 0, 3)}, r"key: expected .* got \(2, 4, 0, 3\)"),
        ({"value": torch.ones(2, 4, 9)}, r"value: expected \(B, D, \*\(3, 3\)\).* got \(2, 4, 9\)"),
        ({"mask": torch.ones(2, 9)}, r"mask: expected \(2, 3, 3\), one weight .* got \(2, 9\)"),
        ({"reduce": "mean"}, "reduce: expected .* got 'mean'"),
        ({"reduce": "max", "value": torch.ones(2, 4, 3, 3)}, 'value: expected None with reduce="m'),
        ({"eps": 0.0}, "eps: expected a number > 0, got 0.0"),
        ({"backend": "gpu"}, "backend: expected one of .* got 'gpu'"),
        ({"key": torch.ones(2, 4, 3, 3, device="meta")}, "key: expected on cpu .* got meta"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], message: str) -> None:
    arguments = {"query": maps(4, (2, 2)), "key": maps(4, (3, 3)), **change}
    with pytest.raises(ValueError, match=message):
        dense_match(**arguments)


def test_things_of_the_wrong_kind_are_named() -> None:
    q = maps(4, (2, 2))
    with pytest.raises(TypeError, match=r"key: expected a floating-point tensor, got torch\.int64"):
        dense_match(q, q.long())
    with pytest.raises(TypeError, match="query: expected a floating-point tensor, got list"):
        dense_match([1], q)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="weights: expected a real or bool tensor, got float"):
        dense_match_sums(q, q, q, 1.0)  # type: ignore[arg-type]


def test_sums_need_bounded_logits() -> None:
    q, w = maps(4, (2, 2)), torch.ones(2, 2, 2)
    with pytest.raises(ValueError, match="scale: expected at most 40 in magnitude, got -41"):
        dense_match_sums(q, q, q, w, scale=-41.0)
    with pytest.raises(ValueError, match=r"scale: expected .* got nan"):
        dense_match_sums(q, q, q, w, scale=float("nan"))
    with pytest.raises(ValueError, match="normalize: expected True"):
        dense_match_sums(q, q, q, w, normalize=False)


@pytest.mark.parametrize("backend", [*BACKENDS[:1], "auto"])
def test_a_mask_that_wants_a_gradient_is_refused(backend: Any) -> None:
    q, m = maps(4, (2, 2)), torch.ones(2, 2, 2, requires_grad=True)
    with pytest.raises(NotImplementedError, match="mask: requires a gradient"):
        dense_match(q, q, mask=m, backend=backend)
    with torch.no_grad():
        dense_match(q, q, mask=m, backend=backend)
    (grad,) = gradients(dense_match(q, q, mask=m, backend="reference"), m)
    assert grad.abs().max() > 0


@native
def test_explain_names_the_backend_and_the_reason() -> None:
    q, w = maps(4, (2, 2)), torch.ones(2, 2, 2)
    assert explain("dense_match", q, q).backend == "native"
    assert explain("dense_match_sums", q, q, q, w).backend == "native"
    double = explain("dense_match", q.double(), q.double(), reduce="max")
    assert double.backend == "reference"
    assert "float64" in double.reasons["native"]
    with pytest.raises(NotImplementedError, match="float64"):
        dense_match(q.double(), q.double(), backend="native")
    mixed = explain("dense_match_sums", q, q, q.bfloat16(), w)
    assert "mixed dtypes" in mixed.reasons["native"]
    assert _native_call.module is not None
