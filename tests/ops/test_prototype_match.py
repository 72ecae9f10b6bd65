from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastfss.ops import _native_call, explain, prototype_match
from fastfss.ops.prototype_match import prototype_match_reference
from tests.published import cosine_scores
from tests.tolerances import assert_close

native = pytest.mark.skipif(_native_call.module is None, reason="built without native code")
BACKENDS = [pytest.param("native", marks=native), "reference"]

# (B, C, h, w), P: one of everything, odd sizes, a single row or column, more prototypes than one
# pass takes (5 channels-last, 10 channels-first).
SHAPES = [
    ((1, 1, 1, 1), 1),
    ((2, 3, 7, 5), 2),
    ((1, 70, 13, 11), 3),
    ((3, 33, 9, 9), 6),
    ((2, 50, 1, 8), 10),
    ((1, 64, 12, 12), 23),
    ((1, 9, 20, 1), 1),
]
IDS = ["x".join(map(str, (*f, p))) for f, p in SHAPES]
KINDS = ["per_image", "per_position"]


def episode(
    shape: tuple[int, ...],
    count: int,
    kind: str = "per_image",
    dtype: torch.dtype = torch.float32,
    *,
    channels_last: bool = False,
) -> tuple[Tensor, Tensor]:
    """Features (B, C, h, w); prototypes (P, C), (B, P, C) or (B, P, C, h, w). Norms far from 1."""
    generator = torch.Generator().manual_seed(0)
    batch, channels, height, width = shape
    features = torch.randn(shape, generator=generator) * 3
    sizes = {
        "shared": (count, channels),
        "per_image": (batch, count, channels),
        "per_position": (batch, count, channels, height, width),
    }
    prototypes = torch.randn(sizes[kind], generator=generator) * 0.2
    if channels_last:
        features = features.contiguous(memory_format=torch.channels_last)
        if kind == "per_position":
            prototypes = prototypes.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    return features.to(dtype), prototypes.to(dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_published_cosine(backend: Any, kind: str) -> None:
    features, prototypes = episode((2, 24, 15, 13), 3, kind)
    ours = prototype_match(features, prototypes, scale=10.0, backend=backend)
    assert_close(ours, cosine_scores(features, list(prototypes.unbind(1))))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels_last", [False, True], ids=["first", "last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("shape", "count"), SHAPES, ids=IDS)
def test_native_equals_float64_on_every_instruction_set(
    isa: str, shape: Any, count: int, dtype: torch.dtype, channels_last: bool, kind: str
) -> None:
    features, prototypes = episode(shape, count, kind, dtype, channels_last=channels_last)
    exact = prototype_match(features.double(), prototypes.double(), scale=10.0)
    ours = prototype_match(features, prototypes, scale=10.0, backend="native")
    assert ours.dtype == dtype
    assert_close(ours, exact)
    plain = prototype_match_reference(features, prototypes, 10.0, 1e-8)
    error, bound = ((r.double() - exact).abs().max() for r in (ours, plain))
    assert error <= 2 * bound + 1e-5, "more than twice the error of plain PyTorch"


@pytest.mark.parametrize("backend", BACKENDS)
def test_shared_prototypes_serve_every_image(backend: Any) -> None:
    features, prototypes = episode((3, 20, 6, 5), 4, "shared")
    ours = prototype_match(features, prototypes, backend=backend)
    assert_close(ours, prototype_match(features, prototypes.expand(3, 4, 20), backend=backend))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("reduce", ["max", "mean"])
def test_groups_are_reduced(backend: Any, shared: bool, reduce: Any) -> None:
    features, prototypes = episode((2, 20, 6, 5), 12, "shared" if shared else "per_image")
    groups = prototypes.unflatten(-2, (3, 4))  # type: ignore[no-untyped-call]
    ours = prototype_match(features, groups, scale=5.0, reduce=reduce, backend=backend)
    members = prototype_match(features, prototypes, scale=5.0, backend=backend).view(2, 3, 4, 6, 5)
    assert_close(ours, members.amax(2) if reduce == "max" else members.mean(2))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_zero_vectors_score_zero(backend: Any, kind: str) -> None:
    features, prototypes = episode((2, 20, 6, 5), 2, kind)
    features[:, :, 2, 3] = 0
    prototypes[:, 1] = 0
    ours = prototype_match(features, prototypes, backend=backend)
    assert ours[:, :, 2, 3].eq(0).all()
    assert ours[:, 1].eq(0).all()
    assert ours[:, 0].ne(0).sum() == 2 * (6 * 5 - 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_zero_vectors_have_finite_gradients_in_low_precision(dtype: Any, kind: str) -> None:
    # The published eps of 1e-8 is 0 in float16.
    features, prototypes = (one.to(dtype) for one in episode((1, 20, 6, 5), 2, kind))
    features[:, :, 2, 3] = 0
    prototypes[:, 1] = 0
    features.requires_grad_(), prototypes.requires_grad_()
    scores = prototype_match(features, prototypes)
    scores.sum().backward()
    assert scores[:, 1].eq(0).all()
    for one in (scores, features.grad, prototypes.grad):
        assert one is not None and one.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_eps_is_the_least_norm_of_each_vector(backend: Any, kind: str) -> None:
    features, prototypes = episode((1, 20, 2, 2), 1, kind)
    exact = prototype_match(features.double(), prototypes.double(), eps=2.0)
    assert_close(prototype_match(features, prototypes, eps=2.0, backend=backend), exact)
    assert exact.abs().max() < 0.9 * prototype_match(features, prototypes).abs().max()


@native
@pytest.mark.parametrize("kind", KINDS)
def test_any_strides_give_the_same(kind: str) -> None:
    features, prototypes = episode((4, 34, 9, 11), 3, kind)
    expected = prototype_match(features, prototypes, backend="native")

    def check(maps: Tensor, others: Tensor, copied: bool) -> None:
        assert_close(prototype_match(maps, others, backend="native"), expected)
        note = explain("prototype_match", maps, others).note
        assert (note is not None) == copied

    wide = torch.cat([features, features], dim=1)
    check(wide[:, :34], prototypes, copied=False)
    check(features.repeat_interleave(2, 0)[::2], prototypes, copied=False)
    check(features.transpose(2, 3).contiguous().transpose(2, 3), prototypes, copied=True)
    check(torch.cat([features, features], dim=3)[..., :11], prototypes, copied=True)
    check(features, torch.cat([prototypes, prototypes], 2)[:, :, :34], copied=False)
    check(features, prototypes.repeat_interleave(2, 1)[:, ::2], copied=False)
    by_channel = prototypes.transpose(1, 2).contiguous().transpose(1, 2)
    check(features, by_channel, copied=False)
    last = features.contiguous(memory_format=torch.channels_last)
    check(last, prototypes, copied=kind == "per_position")
    check(torch.cat([last, last], 1)[:, :34], prototypes, copied=kind == "per_position")


@pytest.mark.parametrize("shape", [(0, 5, 3, 3), (2, 0, 3, 3), (2, 5, 3, 3)])
@pytest.mark.parametrize("count", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_empty_batch_channels_or_prototypes(shape: tuple[int, ...], count: int, kind: str) -> None:
    features, prototypes = episode(shape, count, kind)
    features.requires_grad_(), prototypes.requires_grad_()
    out = prototype_match(features, prototypes)
    assert out.shape == (shape[0], count, 3, 3)
    out.sum().backward()
    for leaf in (features, prototypes):
        assert leaf.grad is not None and leaf.grad.shape == leaf.shape


@native
@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels_last", [False, True], ids=["first", "last"])
@pytest.mark.parametrize(("shape", "count"), SHAPES, ids=IDS)
def test_every_element_is_written(shape: Any, count: int, channels_last: bool, kind: str) -> None:
    features, prototypes = episode(shape, count, kind, channels_last=channels_last)
    features.requires_grad_(), prototypes.requires_grad_()
    out = prototype_match(features, prototypes, backend="native")
    out.sum().backward()
    for result in (out, features.grad, prototypes.grad):
        assert result is not None and result.isfinite().all()


@native
@pytest.mark.parametrize("kind", KINDS)
def test_two_threads_give_the_same_bits(kind: str) -> None:
    before = torch.get_num_threads()
    try:
        for shape in ((1, 70, 21, 19), (3, 70, 21, 19)):
            for last in (False, True):
                features, prototypes = episode(shape, 3, kind, channels_last=last)
                results = []
                for threads in (1, 2, 3):
                    torch.set_num_threads(threads)
                    results.append(gradients(features, prototypes, "native"))
                for one, two, three in zip(*results, strict=True):
                    assert one.equal(two) and one.equal(three)
    finally:
        torch.set_num_threads(before)


# ---- gradients


def gradients(
    features: Tensor, prototypes: Tensor, backend: Any, eps: float = 1e-8
) -> list[Tensor]:
    """The result and its gradients with respect to features and prototypes."""
    features = features.detach().requires_grad_()
    prototypes = prototypes.detach().requires_grad_()
    out = prototype_match(features, prototypes, scale=10.0, eps=eps, backend=backend)
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, (features, prototypes), direction)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels_last", [False, True], ids=["first", "last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("shape", "count"), SHAPES[1:], ids=IDS[1:])
def test_native_gradient_equals_the_references_in_float64(
    isa: str, shape: Any, count: int, dtype: torch.dtype, channels_last: bool, kind: str
) -> None:
    features, prototypes = episode(shape, count, kind, dtype, channels_last=channels_last)
    ours = gradients(features, prototypes, "native")
    exact = gradients(features.double(), prototypes.double(), "reference")
    assert ours[1].dtype == dtype
    assert ours[1].stride() == features.stride() or 1 in features.shape
    for mine, wanted in zip(ours, exact, strict=True):
        assert_close(mine, wanted, dtype=dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_vectors_below_eps_have_the_gradient_of_a_plain_product(backend: Any, kind: str) -> None:
    # Half of the features' norms and half of the prototypes' lie below eps.
    features, prototypes = episode((2, 20, 4, 5), 4, kind)
    features[:, :, ::2] *= 0.02
    prototypes[:, ::2] *= 0.02
    for eps in (0.5, 2.0):
        ours = gradients(features, prototypes, backend, eps)
        exact = gradients(features.double(), prototypes.double(), "reference", eps)
        for mine, wanted in zip(ours, exact, strict=True):
            assert_close(mine, wanted)


@native
@pytest.mark.parametrize("wanted", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels_last", [False, True], ids=["first", "last"])
def test_one_gradient_alone(wanted: int, kind: str, channels_last: bool) -> None:
    inputs = list(episode((2, 20, 4, 5), 3, kind, channels_last=channels_last))
    both = gradients(inputs[0], inputs[1], "native")
    direction = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(1))
    inputs[wanted].requires_grad_()
    out = prototype_match(inputs[0], inputs[1], scale=10.0, backend="native")
    (alone,) = torch.autograd.grad(out, inputs[wanted], direction)
    assert alone.equal(both[1 + wanted])


@pytest.mark.parametrize("kind", ["shared", *KINDS])
@pytest.mark.parametrize("reduce", [None, "max", "mean"])
def test_gradcheck_in_double(kind: str, reduce: Any) -> None:
    if kind == "per_position" and reduce is not None:
        pytest.skip("groups are vectors")
    features, prototypes = episode((2, 3, 2, 3), 4, kind, torch.float64)
    if reduce is not None:
        prototypes = prototypes.unflatten(-2, (2, 2))  # type: ignore[no-untyped-call]
    inputs = (features.requires_grad_(), prototypes.detach().requires_grad_())
    assert torch.autograd.gradcheck(
        lambda f, p: prototype_match(f, p, scale=2.0, reduce=reduce), inputs
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("channels_last", [False, True], ids=["first", "last"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True), (False, False)])
def test_opcheck(
    dtype: torch.dtype, channels_last: bool, kind: str, wanted: tuple[bool, bool]
) -> None:
    features, prototypes = episode((2, 5, 4, 3), 2, kind, dtype, channels_last=channels_last)
    features.requires_grad_(wanted[0])
    prototypes.requires_grad_(wanted[1])
    operator = torch.ops.fastfss.prototype_match.default
    torch.library.opcheck(operator, (features, prototypes, 10.0, 1e-8))
    inputs = (features.detach(), prototypes.detach())
    results = operator(*inputs, 10.0, 1e-8)
    torch.library.opcheck(
        torch.ops.fastfss.prototype_match_backward.default,
        (torch.ones(2, 2, 4, 3, dtype=dtype), *inputs, *results, 10.0, 1e-8, list(wanted)),
    )


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiles_into_one_graph_with_its_gradient(backend: str) -> None:
    def step(features: Tensor, vectors: Tensor, maps: Tensor) -> Tensor:
        of_vectors = prototype_match(features * 2, vectors.unsqueeze(2), scale=10.0, reduce="max")
        return (of_vectors - prototype_match(features, maps)).square().sum()

    features, vectors = episode((2, 8, 5, 4), 3)
    _, maps = episode((2, 8, 5, 4), 3, "per_position")
    compiled = torch.compile(step, fullgraph=True, backend=backend)
    results = []
    for function in (step, compiled):
        inputs = tuple(t.clone().requires_grad_() for t in (features, vectors, maps))
        value = function(*inputs)
        results.append((value, *torch.autograd.grad(value, inputs)))
    for eager, graph in zip(*results, strict=True):
        assert_close(graph, eager)


# ---- errors and explanations


@pytest.mark.parametrize(
    ("features", "prototypes", "options", "message"),
    [
        ((3, 4, 5), (2, 3), {}, r"features: expected \(B, C, h, w\), got \(3, 4, 5\)"),
        ((2, 3, 0, 5), (2, 3), {}, "features: expected at least one position"),
        ((2, 3, 4, 5), (2, 4), {}, r"prototypes: expected \(P, 3\), .* got \(2, 4\)"),
        ((2, 3, 4, 5), (1, 2, 3), {}, r"prototypes: expected .* got \(1, 2, 3\)"),
        ((2, 3, 4, 5), (2, 2, 3, 4, 4), {}, r"\(2, P, 3, 4, 5\), got \(2, 2, 3, 4, 4\)"),
        ((2, 3, 4, 5), (2, 2, 2, 3), {}, r"prototypes: expected .* got \(2, 2, 2, 3\)"),
        ((2, 3, 4, 5), (2, 3), {"reduce": "max"}, r"\(P, G, 3\) or \(2, P, G, 3\), .* got \(2, 3"),
        ((2, 3, 4, 5), (2, 0, 3), {"reduce": "max"}, r"G > 0, .* got \(2, 0, 3\)"),
        ((2, 3, 4, 5), (2, 3), {"reduce": "sum"}, "reduce: expected .* got 'sum'"),
        ((2, 3, 4, 5), (2, 3), {"eps": 0.0}, "eps: expected a number > 0, got 0.0"),
    ],
)
def test_bad_input_is_named(
    features: tuple[int, ...], prototypes: tuple[int, ...], options: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        prototype_match(torch.zeros(features), torch.zeros(prototypes), **options)


def test_prototypes_of_another_dtype_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"prototypes: expected torch\.float32 on cpu like the features, got torch"
    ):
        prototype_match(torch.zeros(1, 2, 3, 3), torch.zeros(1, 2).double())


def test_wrong_kinds_are_named() -> None:
    features, prototypes = torch.zeros(1, 2, 3, 3), torch.zeros(1, 2)
    with pytest.raises(TypeError, match=r"features: expected .* got torch\.int64"):
        prototype_match(features.long(), prototypes)
    with pytest.raises(TypeError, match=r"prototypes: expected .* got list"):
        prototype_match(features, prototypes.tolist())


@native
def test_explain_names_the_backend_and_the_reason() -> None:
    features, prototypes = episode((1, 2, 3, 4), 2)
    assert explain("prototype_match", features, prototypes).backend == "native"
    told = explain("prototype_match", features.double(), prototypes.double())
    assert told.backend == "reference"
    assert "float64" in told.reasons["native"]
    with pytest.raises(NotImplementedError, match="float64"):
        prototype_match(features.double(), prototypes.double(), backend="native")
