from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastfss.ops import center_pivot_conv4d, explain
from fastfss.ops.center_pivot_conv4d import center_pivot_conv4d_reference
from tests.tolerances import assert_close

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


def test_explain_says_that_it_is_plain_torch() -> None:
    found = explain("center_pivot_conv4d", *arguments(1, 4, 4, (3, 3), (2, 2), 3))
    assert found.backend == "reference"
    assert set(found.reasons) == {"native", "triton", "cuda"}


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
