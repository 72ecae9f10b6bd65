from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastfss.ops import _native_call, explain, masked_average_pool
from fastfss.ops.masked_average_pool import masked_average_pool_reference
from tests.published import panet_masked_average_pool, ssp_masked_average_pool
from tests.tolerances import assert_close

native = pytest.mark.skipif(_native_call.module is None, reason="built without native code")
BACKENDS = [pytest.param("native", marks=native), "reference"]

# (B, C, h, w), (M, H, W): one of everything, odd sizes, equal sizes, masks smaller than the
# features, a single row or column, more masks than one pass takes.
SHAPES = [
    ((1, 1, 1, 1), (1, 1, 1)),
    ((2, 3, 7, 5), (2, 13, 9)),
    ((1, 17, 13, 11), (3, 29, 31)),
    ((2, 33, 15, 15), (6, 15, 15)),
    ((1, 40, 6, 9), (1, 3, 4)),
    ((2, 50, 1, 8), (2, 16, 1)),
    ((3, 64, 12, 12), (11, 24, 25)),
    ((1, 9, 20, 1), (2, 1, 40)),
]
IDS = ["x".join(map(str, (*f, *m))) for f, m in SHAPES]


def episode(
    features: tuple[int, ...],
    masks: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    *,
    channels_last: bool = False,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Features (B, C, h, w) of mean 1, soft masks (B, M, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(features, generator=generator) + 1
    weights = torch.rand((features[0], *masks), generator=generator)
    if channels_last:
        maps = maps.contiguous(memory_format=torch.channels_last)
    return maps.to(dtype), weights


@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_ssp_as_published(backend: Any) -> None:
    features, masks = episode((2, 24, 15, 13), (2, 117, 99))
    ours = masked_average_pool(features, masks, backend=backend)
    published = [ssp_masked_average_pool(features, masks[:, i]) for i in range(2)]
    assert_close(ours, torch.stack(published, 1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_panet_and_mlc_as_published(backend: Any) -> None:
    features, masks = episode((2, 24, 15, 13), (2, 117, 99))
    ours = masked_average_pool(features, masks, resize="features", backend=backend)
    published = [panet_masked_average_pool(features, masks[:, i]) for i in range(2)]
    assert_close(ours, torch.stack(published, 1))


@pytest.mark.parametrize("resize", ["mask", "features"])
@pytest.mark.parametrize("channels_last", [False, True], ids=["first", "last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("features", "masks"), SHAPES, ids=IDS)
def test_native_equals_float64_on_every_instruction_set(
    isa: str, features: Any, masks: Any, dtype: torch.dtype, channels_last: bool, resize: Any
) -> None:
    maps, weights = episode(features, masks, dtype, channels_last=channels_last)
    exact = masked_average_pool(maps.double(), weights, resize=resize)
    ours = masked_average_pool(maps, weights, resize=resize, backend="native")
    assert ours.dtype == dtype
    assert_close(ours, exact)
    plain = masked_average_pool_reference(maps, weights, resize, True, 1e-5)
    error, bound = ((r.double() - exact).abs().max() for r in (ours, plain))
    assert error <= 2 * bound + 1e-6, "more than twice the error of plain PyTorch"


@native
@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(
    ("grid", "size"),
    [
        ((60, 60), (473, 473)),
        ((7, 5), (30, 11)),
        ((9, 12), (4, 5)),
        ((10, 10), (10, 10)),
        ((1, 6), (13, 1)),
    ],
)
def test_mask_is_resized_as_torch_does(
    grid: tuple[int, int], size: tuple[int, int], align_corners: bool
) -> None:
    # With unit vectors as features, the result is the resized mask itself.
    positions = grid[0] * grid[1]
    features = torch.eye(positions).view(1, positions, *grid)
    _, masks = episode((1, 1, 1, 1), (2, *size))
    options: Any = {"align_corners": align_corners, "backend": "native"}

    shrunk = F.interpolate(masks, grid, mode="bilinear", align_corners=align_corners).flatten(2)
    ours = masked_average_pool(features, masks, resize="mask", **options)
    assert_close(ours * (shrunk.sum(2, keepdim=True) + 1e-5), shrunk)

    adjoint = torch.ops.aten.upsample_bilinear2d_backward(
        masks, size, [1, 2, *grid], align_corners, None, None
    ).flatten(2)
    ours = masked_average_pool(features, masks, resize="features", **options)
    assert_close(ours * (masks.sum((2, 3)).unsqueeze(2) + 1e-5), adjoint)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("resize", ["mask", "features"])
@pytest.mark.parametrize("eps", [1e-5, 0.0])
def test_empty_mask_gives_zero_prototype(backend: Any, resize: Any, eps: float) -> None:
    features, masks = episode((2, 6, 5, 4), (2, 9, 8))
    masks[:, 1] = 0
    out = masked_average_pool(features, masks, resize=resize, eps=eps, backend=backend)
    assert out[:, 1].eq(0).all()
    assert out[:, 0].ne(0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_object_of_one_pixel_gives_the_features_there(backend: Any) -> None:
    features, _ = episode((1, 6, 5, 5), (1, 9, 9))
    mask = torch.zeros(1, 1, 9, 9, dtype=torch.bool)
    mask[..., 4, 8] = True  # with align_corners the pixel lies on position (2, 4)
    for resize in ("mask", "features"):
        out = masked_average_pool(features, mask, resize=resize, eps=0.0, backend=backend)
        assert_close(out[0, 0], features[0, :, 2, 4])


@native
@pytest.mark.parametrize("resize", ["mask", "features"])
@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.bfloat16, torch.float16, torch.float64], ids=str
)
def test_masks_of_any_dtype_give_the_same(dtype: torch.dtype, resize: Any) -> None:
    features, masks = episode((2, 19, 7, 9), (3, 31, 41))
    masks = masks.gt(0.5).float()
    expected = masked_average_pool(features, masks, resize=resize, backend="native")
    ours = masked_average_pool(features, masks.to(dtype), resize=resize, backend="native")
    assert_close(ours, expected)


@native
@pytest.mark.parametrize("resize", ["mask", "features"])
def test_any_strides_give_the_same(resize: Any) -> None:
    features, masks = episode((4, 34, 9, 11), (2, 31, 41))
    expected = masked_average_pool(features, masks, resize=resize, backend="native")

    def check(maps: Tensor, weights: Tensor, copied: bool) -> None:
        ours = masked_average_pool(maps, weights, resize=resize, backend="native")
        assert_close(ours, expected)
        note = explain("masked_average_pool", maps, weights).note
        assert (note is not None) == copied

    wide = torch.cat([features, features], dim=1)
    check(wide[:, :34], masks, copied=False)
    check(wide.contiguous(memory_format=torch.channels_last)[:, 34:], masks, copied=False)
    check(features.repeat_interleave(2, 0)[::2], masks.repeat_interleave(2, 0)[::2], copied=False)
    check(features.transpose(2, 3).contiguous().transpose(2, 3), masks, copied=True)
    check(torch.cat([features, features], dim=3)[..., :11], masks, copied=True)
    check(features, masks.repeat_interleave(2, 3)[..., ::2], copied=False)
    check(features, masks.transpose(2, 3).contiguous().transpose(2, 3), copied=False)


@pytest.mark.parametrize("shape", [(0, 5, 3, 3), (2, 0, 3, 3), (2, 5, 3, 3)])
@pytest.mark.parametrize("masks", [0, 2])
def test_empty_batch_channels_or_masks(shape: tuple[int, ...], masks: int) -> None:
    features, weights = episode(shape, (masks, 7, 7))
    features.requires_grad_()
    out = masked_average_pool(features, weights)
    assert out.shape == (shape[0], masks, shape[1])
    out.sum().backward()
    assert features.grad is not None and features.grad.shape == shape


@native
@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("channels_last", [False, True], ids=["first", "last"])
@pytest.mark.parametrize(("features", "masks"), SHAPES, ids=IDS)
def test_every_element_is_written(features: Any, masks: Any, channels_last: bool) -> None:
    maps, weights = episode(features, masks, channels_last=channels_last)
    maps.requires_grad_(), weights.requires_grad_()
    out = masked_average_pool(maps, weights, backend="native")
    out.sum().backward()
    for result in (out, maps.grad, weights.grad):
        assert result is not None and result.isfinite().all()


@native
def test_two_threads_give_the_same_bits() -> None:
    before = torch.get_num_threads()
    try:
        for shape in ((1, 70, 21, 19), (3, 70, 21, 19)):
            for last in (False, True):
                features, masks = episode(shape, (3, 50, 60), channels_last=last)
                results = []
                for threads in (1, 2, 3):
                    torch.set_num_threads(threads)
                    results.append(gradients(features, masks, "features", "native"))
                for one, two, three in zip(*results, strict=True):
                    assert one.equal(two) and one.equal(three)
    finally:
        torch.set_num_threads(before)


# ---- gradients


def gradients(features: Tensor, masks: Tensor, resize: Any, backend: Any) -> list[Tensor]:
    """The result and its gradients with respect to features and masks."""
    features = features.detach().requires_grad_()
    masks = masks.detach().requires_grad_()
    out = masked_average_pool(features, masks, resize=resize, backend=backend)
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, (features, masks), direction)]


@pytest.mark.parametrize("resize", ["mask", "features"])
@pytest.mark.parametrize("channels_last", [False, True], ids=["first", "last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("features", "masks"), SHAPES, ids=IDS)
def test_native_gradient_equals_the_references_in_float64(
    isa: str, features: Any, masks: Any, dtype: torch.dtype, channels_last: bool, resize: Any
) -> None:
    maps, weights = episode(features, masks, dtype, channels_last=channels_last)
    ours = gradients(maps, weights, resize, "native")
    exact = gradients(maps.double(), weights.double(), resize, "reference")
    assert ours[1].dtype == dtype
    assert ours[1].stride() == maps.stride() or 1 in maps.shape
    for mine, wanted in zip(ours, exact, strict=True):
        # Where a mask's weights are all alike, its gradient is what eps leaves: rounding.
        if wanted.abs().max() > 1e-3:
            assert_close(mine, wanted, dtype=dtype)


@pytest.mark.parametrize("resize", ["mask", "features"])
@pytest.mark.parametrize("align_corners", [True, False])
def test_gradcheck_in_double(resize: Any, align_corners: bool) -> None:
    features, masks = episode((2, 3, 3, 4), (2, 5, 6), torch.float64)
    inputs = (features.requires_grad_(), masks.double().requires_grad_())
    assert torch.autograd.gradcheck(
        lambda f, m: masked_average_pool(f, m, resize=resize, align_corners=align_corners), inputs
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("channels_last", [False, True], ids=["first", "last"])
@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True), (False, False)])
def test_opcheck(dtype: torch.dtype, channels_last: bool, wanted: tuple[bool, bool]) -> None:
    features, masks = episode((2, 5, 4, 3), (2, 9, 8), dtype, channels_last=channels_last)
    features.requires_grad_(wanted[0])
    masks.requires_grad_(wanted[1])
    options = ("features", True, 1e-5)
    torch.library.opcheck(
        torch.ops.fastfss.masked_average_pool.default, (features, masks, *options)
    )
    inputs = (features.detach(), masks.detach())
    torch.library.opcheck(
        torch.ops.fastfss.masked_average_pool_backward.default,
        (torch.ones(2, 2, 5, dtype=dtype), *inputs, *options, list(wanted)),
    )


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiles_into_one_graph_with_its_gradient(backend: str) -> None:
    def step(features: Tensor, masks: Tensor) -> Tensor:
        both = [masked_average_pool(features * 2, masks, resize=r) for r in ("mask", "features")]
        return torch.stack(both).square().sum()

    features, masks = episode((2, 8, 5, 4), (2, 11, 12))
    compiled = torch.compile(step, fullgraph=True, backend=backend)
    results = []
    for function in (step, compiled):
        inputs = (features.clone().requires_grad_(), masks.clone().requires_grad_())
        value = function(*inputs)
        results.append((value, *torch.autograd.grad(value, inputs)))
    for eager, graph in zip(*results, strict=True):
        assert_close(graph, eager)


# ---- errors and explanations


@pytest.mark.parametrize(
    ("features", "masks", "options", "message"),
    [
        ((3, 4, 5), (1, 1, 4, 5), {}, r"features: expected \(B, C, h, w\), got \(3, 4, 5\)"),
        ((2, 3, 4, 5), (1, 1, 4, 5), {}, r"masks: expected \(B, M, H, W\) with B = 2, got \(1, 1"),
        (
            (2, 3, 4, 5),
            (2, 4, 5),
            {},
            r"masks: expected \(B, M, H, W\) with B = 2, got \(2, 4, 5\)",
        ),
        ((2, 3, 0, 5), (2, 1, 4, 5), {}, "features, masks: expected at least one position"),
        ((2, 3, 4, 5), (2, 1, 4, 5), {"resize": "both"}, "resize: expected .* got 'both'"),
        ((2, 3, 4, 5), (2, 1, 4, 5), {"eps": -1.0}, "eps: expected a number >= 0, got -1.0"),
        ((2, 3, 4, 5), (2, 1, 4, 5), {"backend": "gpu"}, "backend: expected one of .* got 'gpu'"),
    ],
)
def test_bad_input_is_named(
    features: tuple[int, ...], masks: tuple[int, ...], options: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        masked_average_pool(torch.zeros(features), torch.zeros(masks), **options)


def test_wrong_kinds_are_named() -> None:
    features, masks = torch.zeros(1, 2, 3, 3), torch.zeros(1, 1, 3, 3)
    with pytest.raises(TypeError, match=r"masks: expected .* got torch\.int64"):
        masked_average_pool(features, masks.long())
    with pytest.raises(TypeError, match=r"features: expected .* got torch\.uint8"):
        masked_average_pool(features.byte(), masks)
    with pytest.raises(TypeError, match=r"masks: expected .* got ndarray"):
        masked_average_pool(features, masks.numpy())  # type: ignore[arg-type]


@native
def test_explain_names_the_backend_and_the_reason() -> None:
    features, masks = episode((1, 2, 3, 4), (1, 5, 5))
    assert explain("masked_average_pool", features, masks).backend == "native"
    told = explain("masked_average_pool", features.double(), masks, resize="features")
    assert told.backend == "reference"
    assert "float64" in told.reasons["native"]
    with pytest.raises(NotImplementedError, match="float64"):
        masked_average_pool(features.double(), masks, backend="native")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_an_empty_mask_gives_zero_under_autocast(dtype: torch.dtype) -> None:
    features, masks = episode((2, 9, 6, 5), (2, 13, 9), dtype)
    masks[:, 1] = 0
    plain = masked_average_pool(features, masks, resize="mask")
    with torch.autocast("cpu", dtype):
        pooled = masked_average_pool(features, masks, resize="mask")
    assert pooled[:, 1].eq(0).all()
    assert torch.equal(pooled, plain)
