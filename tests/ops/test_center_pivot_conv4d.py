from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastfss.ops import _native_call, center_pivot_block, center_pivot_conv4d, explain
from fastfss.ops._center_pivot_torch import group_norm4d
from fastfss.ops.center_pivot_conv4d import center_pivot_conv4d_reference
from fastfss.ops.center_pivot_parts import center_pivot_block_in_parts
from tests.tolerances import RELATIVE, assert_close

native = pytest.mark.skipif(_native_call.module is None, reason="built without native code")

# batch, inputs, outputs, query grid, support grid, kernel, stride
SHAPES = [
    (1, 1, 1, (1, 1), (1, 1), 3, 1),
    (2, 3, 8, (4, 5), (3, 4), 3, 1),
    (2, 3, 8, (4, 5), (5, 6), 3, 2),
    (1, 2, 5, (5, 4), (13, 10), 5, 4),
    (2, 4, 6, (3, 7), (2, 2), 3, 1),
    (1, 4, 6, (3, 7), (2, 1), 3, 1),
    (1, 4, 6, (3, 7), (1, 4), 5, 2),
    (3, 6, 4, (2, 2), (4, 4), 3, 2),
]
# Several vectors of outputs, a rest of one, chunks of weights, long and short rows of the query.
NATIVE_SHAPES = [
    *SHAPES,
    (1, 4, 16, (3, 17), (9, 10), 5, 4),
    (2, 16, 64, (2, 9), (6, 7), 5, 4),
    (1, 6, 18, (3, 8), (4, 3), 3, 2),
    (1, 40, 80, (2, 3), (3, 3), 1, 1),
    (1, 130, 132, (2, 7), (2, 2), 3, 1),
]


def arguments(
    batch: int,
    inputs: int,
    outputs: int,
    query: tuple[int, int],
    support: tuple[int, int],
    kernel: int,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    shapes = [
        (batch, inputs, *query, *support),
        *(((outputs, inputs, kernel, kernel), (outputs,)) * 2),
    ]
    return tuple(torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_plain_form(shape: tuple, grad: bool) -> None:
    *sizes, stride = shape
    tensors = arguments(*sizes)
    wanted = center_pivot_conv4d_reference(*tensors, stride)
    with torch.set_grad_enabled(grad):
        assert_close(center_pivot_conv4d(*tensors, stride=stride), wanted)


@pytest.mark.parametrize("shape", SHAPES[1:4])
def test_gradients(shape: tuple) -> None:
    *sizes, stride = shape
    tensors = [one.requires_grad_() for one in arguments(*sizes)]
    ours = center_pivot_conv4d(*tensors, stride=stride)
    plain = center_pivot_conv4d_reference(*tensors, stride)
    weights = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1)).double()
    for found, wanted in zip(
        torch.autograd.grad((ours * weights).sum(), tensors),
        torch.autograd.grad((plain * weights).sum(), tensors),
        strict=True,
    ):
        assert_close(found, wanted)


def test_channels_last_memory_and_views_give_the_same() -> None:
    x, *rest = arguments(2, 3, 8, (4, 5), (5, 6), 3)
    wanted = center_pivot_conv4d(x, *rest, stride=2)
    last = x.permute(0, 2, 3, 4, 5, 1).contiguous().permute(0, 5, 1, 2, 3, 4)
    assert_close(center_pivot_conv4d(last, *rest, stride=2), wanted)
    wide = torch.cat([x, x], dim=5)[..., : x.shape[5]]
    assert_close(center_pivot_conv4d(wide, *rest, stride=2), wanted)


def test_weights_in_channels_last_memory_give_the_same() -> None:
    for dtype in (torch.float32, torch.bfloat16):  # three channels are padded in bfloat16
        tensors = [one.to(dtype) for one in arguments(1, 3, 8, (4, 5), (5, 6), 3)]
        wanted = center_pivot_conv4d(*tensors, stride=2)
        for side in (1, 3):
            tensors[side] = tensors[side].to(memory_format=torch.channels_last)
        assert_close(center_pivot_conv4d(*tensors, stride=2), wanted)


def low_arguments(shape: tuple, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """The arguments and a norm's weight and bias in a dtype, and exactly those in float64."""
    tensors = [*arguments(*shape[:-1]), *arguments(*shape[:-1])[2::2]]
    low = [one.to(dtype) for one in tensors]
    return low, [one.double() for one in low]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", NATIVE_SHAPES)
def test_native_equals_float64(isa: str, shape: tuple, dtype: torch.dtype) -> None:
    low, exact = low_arguments(shape, dtype)
    wanted = center_pivot_conv4d_reference(*exact[:5], shape[-1])
    ours = center_pivot_conv4d(*low[:5], stride=shape[-1], backend="native")
    assert ours.dtype == dtype and ours.permute(0, 2, 3, 4, 5, 1).is_contiguous()
    assert_close(ours, wanted)
    plain = center_pivot_conv4d_reference(*low[:5], shape[-1])
    error, bound = ((one.double() - wanted).norm() for one in (ours, plain))
    assert error <= 2 * bound + 1e-6 * wanted.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", NATIVE_SHAPES[1:])
def test_native_norm_and_relu_equal_float64(isa: str, shape: tuple, dtype: torch.dtype) -> None:
    low, exact = low_arguments(shape, dtype)
    groups = 2 if shape[2] % 2 == 0 else 1
    convolved = center_pivot_conv4d_reference(*exact[:5], shape[-1])
    wanted = torch.nn.functional.group_norm(convolved, groups, *exact[5:]).relu()
    options = {"stride": shape[-1], "groups": groups}
    ours = center_pivot_block(*low, **options, backend="native")
    assert ours.dtype == dtype
    plain = center_pivot_block(*low, **options, backend="reference")
    error, bound = ((one.double() - wanted).norm() for one in (ours, plain))
    assert error <= 2 * bound + 1e-6 * wanted.norm()


@native
def test_a_mean_far_from_zero_costs_the_norm_no_digits() -> None:
    low, exact = low_arguments((1, 4, 8, (9, 9), (4, 4), 3, 1), torch.float32)
    low[2] += 1000
    exact[2] += 1000
    convolved = center_pivot_conv4d_reference(*exact[:5], 1)
    wanted = torch.nn.functional.group_norm(convolved, 2, *exact[5:]).relu()
    found = center_pivot_block(*low, groups=2, backend="native")
    # The convolution's own result is rounded at about 1000, its spread is about 8.
    assert (found - wanted).abs().max() < 1000 * RELATIVE[torch.float32] / 8


@native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("threads", [2, 3])
def test_threads_do_not_change_the_result(threads: int, dtype: torch.dtype) -> None:
    low, _ = low_arguments((2, 4, 16, (5, 7), (9, 6), 5, 4), dtype)
    wanted = center_pivot_block(*low, stride=4, groups=4)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert torch.equal(center_pivot_block(*low, stride=4, groups=4), wanted)
    finally:
        torch.set_num_threads(before)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_output_is_written(dtype: torch.dtype) -> None:
    low, _ = low_arguments((2, 3, 6, (5, 4), (5, 6), 3, 2), dtype)
    assert not center_pivot_conv4d(*low[:5], stride=2).isnan().any()
    assert not center_pivot_block(*low, stride=2, groups=2).isnan().any()
    assert not in_parts(low, 2, groups=2).isnan().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nan_reaches_its_windows_and_the_norm_of_its_image(dtype: torch.dtype) -> None:
    low, _ = low_arguments((2, 4, 6, (5, 5), (5, 5), 3, 1), dtype)
    low[0][0, 1, 2, 2, 0, 0] = torch.nan
    found = center_pivot_conv4d(*low[:5]).isnan()
    wanted = torch.zeros_like(found)
    wanted[0, :, 1:4, 1:4, 0, 0] = True
    wanted[0, :, 2, 2, :2, :2] = True
    assert torch.equal(found, wanted)
    normed = center_pivot_block(*low, groups=2).isnan().flatten(1).all(dim=1)
    assert normed.tolist() == [True, False]


def in_parts(tensors: list[Tensor], stride: int, groups: int) -> Tensor:
    x, *weights = tensors
    return center_pivot_block_in_parts(
        lambda out, start: out.copy_(x[:, :, start : start + out.shape[2]]),
        *(x.shape, *weights),
        stride=stride,
        groups=groups,
        eps=1e-5,
    )


@torch.no_grad()
@pytest.mark.parametrize("part_bytes", [1, 4000, 1 << 20])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_parts_equal_the_whole(
    dtype: torch.dtype, part_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastfss.ops.center_pivot_parts._PART_BYTES", part_bytes)
    for shape in ((2, 3, 8, (7, 5), (5, 6), 3, 2), (1, 4, 16, (5, 9), (9, 10), 5, 4)):
        low, _ = low_arguments(shape, dtype)
        wanted = center_pivot_block(*low, stride=shape[-1], groups=4)
        assert_close(in_parts(low, shape[-1], groups=4), wanted)


def test_group_norm_is_torchs() -> None:
    x = torch.randn(2, 8, 3, 4, 5, 2, generator=torch.Generator().manual_seed(0)) + 3
    weight, bias = torch.linspace(-1, 2, 8), torch.linspace(1, 0, 8)
    exact = [one.double() for one in (x, weight, bias)]
    wanted = torch.nn.functional.group_norm(exact[0], 4, *exact[1:], eps=1e-5)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            found = group_norm4d(x, weight, bias, 4, 1e-5)
        assert_close(found, wanted, dtype=torch.float32)


@native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_operators_pass_opcheck(dtype: torch.dtype) -> None:
    low, _ = low_arguments((1, 2, 4, (2, 3), (3, 4), 3, 2), dtype)
    operators = torch.ops.fastfss
    torch.library.opcheck(operators.center_pivot_block.default, (*low, 2, 2, 1e-5))
    trained = [one.requires_grad_() for one in low[:5]]
    torch.library.opcheck(operators.center_pivot_conv4d.default, (*trained, 2))


@pytest.mark.parametrize(
    "shape", [(1, 2, 2, (2, 3), (3, 2), 3, 2), (1, 2, 2, (2, 2), (2, 2), 3, 1)]
)
def test_gradcheck(shape: tuple) -> None:
    tensors = [one.requires_grad_() for one in arguments(*shape[:-1])]
    assert torch.autograd.gradcheck(
        lambda *ones: center_pivot_conv4d(*ones, stride=shape[-1]), tensors
    )


@pytest.mark.parametrize("wanted", [(0,), (1, 2), (3,), (4,)])
def test_gradients_of_some_arguments_alone(wanted: tuple[int, ...]) -> None:
    tensors = list(arguments(1, 2, 3, (3, 3), (2, 2), 3))
    chosen = [tensors[index].requires_grad_() for index in wanted]
    weights = torch.randn(1, 3, 3, 3, 2, 2, generator=torch.Generator().manual_seed(1)).double()
    for found, plain in zip(
        torch.autograd.grad((center_pivot_conv4d(*tensors) * weights).sum(), chosen),
        torch.autograd.grad((center_pivot_conv4d_reference(*tensors, 1) * weights).sum(), chosen),
        strict=True,
    ):
        assert_close(found, plain)


@native
def test_gradients_of_native_results_are_those_of_float64() -> None:
    tensors = [one.float().requires_grad_() for one in arguments(2, 3, 8, (4, 5), (5, 6), 3)]
    exact = [one.detach().double().requires_grad_() for one in tensors]
    ours = center_pivot_conv4d(*tensors, stride=2)
    plain = center_pivot_conv4d_reference(*exact, 2)
    weights = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1))
    for found, wanted in zip(
        torch.autograd.grad((ours * weights).sum(), tensors),
        torch.autograd.grad((plain * weights).sum(), exact),
        strict=True,
    ):
        assert_close(found, wanted)


@native
def test_explain_names_the_backend() -> None:
    tensors = arguments(1, 4, 4, (3, 3), (2, 2), 3)
    found = explain("center_pivot_conv4d", *tensors)
    assert found.backend == "reference"
    assert "float64" in found.reasons["native"]
    single = [one.float() for one in tensors]
    found = explain("center_pivot_conv4d", *single)
    assert found.backend == "native"
    assert set(found.reasons) == {"reference", "triton", "cuda"}
    found = explain("center_pivot_block", *single, single[2], single[2], groups=2)
    assert found.backend == "native"
    with pytest.raises(
        NotImplementedError, match=r"'native' cannot serve this call: .* torch\.float64"
    ):
        center_pivot_conv4d(*tensors, backend="native")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_gradients_of_the_block(dtype: torch.dtype) -> None:
    low, exact = low_arguments((1, 4, 4, (3, 3), (3, 2), 3, 1), dtype)
    for one in (*low, *exact):
        one.requires_grad_()
    ours = center_pivot_block(*low, groups=2)
    plain = torch.nn.functional.group_norm(
        center_pivot_conv4d_reference(*exact[:5], 1), 2, *exact[5:]
    ).relu()
    weights = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1))
    for found, wanted in zip(
        torch.autograd.grad((ours * weights.to(dtype)).sum(), low),
        torch.autograd.grad((plain * weights).sum(), exact),
        strict=True,
    ):
        # A bias before a norm has no gradient but rounding.
        assert (found - wanted).abs().max() < RELATIVE[dtype] * max(1.0, float(wanted.abs().max()))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"groups": 3}, "groups: expected a divisor of 4, got 3"),
        ({"groups": 0}, "groups: expected a divisor of 4, got 0"),
        ({"norm_weight": torch.ones(3)}, r"norm_weight: expected \(4,\), got \(3,\)"),
        ({"norm_bias": torch.ones(4).double()}, "norm_bias: expected torch.float32 on cpu"),
    ],
)
def test_wrong_norms_are_named(changed: dict, message: str) -> None:
    tensors = arguments(1, 4, 4, (3, 3), (2, 2), 3, torch.float32)
    good = {"norm_weight": torch.ones(4), "norm_bias": torch.ones(4), "groups": 2}
    with pytest.raises(ValueError, match=message):
        center_pivot_block(*tensors, **(good | changed))


@pytest.mark.slow
def test_compiles_into_one_graph() -> None:
    tensors = arguments(1, 4, 4, (3, 3), (4, 4), 3, torch.float32)
    compiled = torch.compile(center_pivot_conv4d, fullgraph=True)
    assert_close(compiled(*tensors, stride=2), center_pivot_conv4d(*tensors, stride=2))


def test_the_input_is_not_changed() -> None:
    x, *rest = arguments(1, 4, 4, (3, 3), (2, 2), 3)
    before = x.clone()
    with torch.no_grad():
        center_pivot_conv4d(x, *rest)
    assert torch.equal(x, before)


def test_bfloat16_has_at_most_twice_the_error_of_the_plain_form() -> None:
    exact = arguments(1, 16, 16, (5, 5), (4, 4), 3)
    low = [one.bfloat16() for one in exact]
    wanted = center_pivot_conv4d_reference(*(one.double() for one in low), 1)
    plain = center_pivot_conv4d_reference(*low, 1).double()
    ours = center_pivot_conv4d(*low).double()
    assert (ours - wanted).norm() <= 2 * (plain - wanted).norm()


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({0: torch.zeros(1, 4, 3, 3, 2)}, ValueError, r"x: expected \(B, I, ha, wa, hb, wb\)"),
        ({0: torch.zeros(1, 5, 3, 3, 2, 2)}, ValueError, r"query_weight: expected \(4, 5, 3, 3\)"),
        ({1: torch.zeros(4, 4, 2, 2)}, ValueError, r"query_weight: .* odd kernel"),
        ({3: torch.zeros(4, 4, 5, 5)}, ValueError, r"support_weight: expected \(4, 4, 3, 3\)"),
        ({4: torch.zeros(3)}, ValueError, r"support_bias: expected \(4,\), got \(3,\)"),
        ({2: torch.zeros(4, dtype=torch.int64)}, TypeError, "query_bias: expected a floating"),
        ({2: torch.zeros(4).double()}, ValueError, "query_bias: expected torch.float32 on cpu"),
    ],
)
def test_wrong_arguments_are_named(
    changed: dict[int, Tensor], error: type[Exception], message: str
) -> None:
    tensors = list(arguments(1, 4, 4, (3, 3), (2, 2), 3, torch.float32))
    for index, one in changed.items():
        tensors[index] = one
    with pytest.raises(error, match=message):
        center_pivot_conv4d(*tensors)


def test_the_stride_is_at_least_one() -> None:
    with pytest.raises(ValueError, match="stride: expected at least 1, got 0"):
        center_pivot_conv4d(*arguments(1, 4, 4, (3, 3), (2, 2), 3), stride=0)
