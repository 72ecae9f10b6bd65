"""Every kernel compiles for sm_80 and sm_90, fits, and reads memory as it is meant to.

Triton brings its compiler and NVIDIA's assembler; neither needs a GPU. What is compiled is what a
call at real sizes would launch: the launchers run, and only the launch itself is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from fastfss.kernels._launch import interpreted

pytest.importorskip("triton", reason="not installed: pip install triton")
if interpreted():
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

from tests.kernels.compile_only import SHARED_MEMORY, compiled
from tests.kernels.helpers import laid_out

# Registers that do not fit: a few, outside of the loops, cost nothing.
MOST_SPILLED = 128


def empty(*shape: int, dtype: torch.dtype, layout: str = "first") -> Tensor:
    return laid_out(torch.empty(shape, dtype=dtype), layout).flatten(2)


def pool(dtype: torch.dtype, layout: str) -> None:
    from fastfss.kernels import masked_average_pool as kernels

    features, masks = (
        empty(1, 1024, 60, 60, dtype=dtype, layout=layout),
        torch.empty(1, 2, 473, 473),
    )
    out = features.new_empty(1, 2, 1024)
    common = (features, masks, (60, 60), True, True, 1e-5)
    kernels.forward(*common, out)
    kernels.backward(out, *common, torch.empty_like(features), masks)


def prototypes(dtype: torch.dtype, layout: str) -> None:
    from fastfss.kernels import prototype_match as kernels

    features = empty(1, 1024, 60, 60, dtype=dtype, layout=layout)
    for count in (2, 10):
        each = features.new_empty(1, count, 1024)
        scores, norms = features.new_empty(1, count, 3600), torch.empty(1, 1, 3600)
        kernels.forward(features, each, 10.0, 1e-8, scores, norms)
    common = (features, each, scores, norms, 10.0, 1e-8)
    kernels.backward(scores, *common, torch.empty_like(features), each)
    every, norms = features.unsqueeze(1), torch.empty(1, 2, 3600)
    kernels.forward(features, every, 10.0, 1e-8, scores[:, :1], norms)
    common = (features, every, scores[:, :1], norms, 10.0, 1e-8)
    kernels.backward(scores[:, :1], *common, torch.empty_like(features), torch.empty_like(every))


def correlation(dtype: torch.dtype, layout: str) -> None:
    from fastfss.kernels import dense_correlation as kernels

    other = "last" if layout == "first" else "first"
    queries, supports = (
        [empty(1, 512, 50, 50, dtype=dtype, layout=one) for _ in range(4)]
        for one in (layout, other)
    )
    kernels.forward(queries, supports, True, 1e-5, torch.empty(1, 4, 2500, 2500, dtype=dtype))


def matching(dtype: torch.dtype, layout: str) -> None:
    from fastfss.kernels import dense_match as kernels

    x, mask = empty(1, 1024, 60, 60, dtype=dtype, layout=layout), torch.empty(1, 3600)
    for scale in (2.0, 60.0):
        kernels.forward(x, x, x, mask, scale, True, "softmax", 1e-8, torch.empty_like(x))
    kernels.forward(x, x, None, mask, 1.0, True, "max", 1e-8, x.new_empty(1, 3600))
    head, value = (empty(8, c, 48, 48, dtype=dtype, layout=layout) for c in (64, 1))
    for scale in (0.125, 60.0):
        out = torch.empty_like(value)
        kernels.forward(head, head, value, None, scale, False, "softmax", 1e-8, out)
    wide = empty(8, 200, 48, 48, dtype=dtype, layout=layout)
    kernels.forward(head, head, wide, None, 2.0, True, "softmax", 1e-8, torch.empty_like(wide))


def matching_backward(dtype: torch.dtype, layout: str) -> None:
    from fastfss.kernels import dense_match_backward as kernels

    x, mask = empty(1, 1024, 60, 60, dtype=dtype, layout=layout), torch.empty(1, 3600)
    grad, of_totals = torch.empty(1, 1024, 3600), torch.empty(1, 3600)
    grads = [torch.empty_like(x) for _ in range(3)]
    kernels.backward(grad, of_totals, x, x, x, mask, 2.0, True, 1e-8, *grads)


def pivot(dtype: torch.dtype, layout: str) -> None:
    from fastfss.kernels import center_pivot_conv4d as kernels

    norm = torch.empty(128, dtype=dtype)
    # The first stage of a level, whose few channels are gathered one by one, the second, whose
    # steps are of several taps, and the last.
    for shape, outputs, kernel, stride in (
        ((1, 50, 50, 50, 50, 4), 16, 5, 4),
        ((1, 50, 50, 13, 13, 16), 64, 5, 4),
        ((1, 50, 50, 4, 4, 64), 128, 3, 2),
    ):
        x = torch.empty(shape, dtype=dtype)
        weight = x.new_empty(outputs, shape[-1], kernel, kernel)
        out = x.new_empty(1, 50, 50, -(-shape[3] // stride), -(-shape[4] // stride), outputs)
        bias = norm[:outputs]
        kernels.forward(x, weight, weight, bias, bias, stride, out, (bias, bias, 4, 1e-5))


def inference(dtype: torch.dtype, layout: str) -> None:
    from fastfss.kernels import confident, enlarge, max_pool, weighted_maps

    scores = torch.empty(1, 2, 3600, dtype=dtype)
    confident.forward(scores, 0.7, 0.6, 12, torch.empty_like(scores))
    small, large = (torch.empty(1, side, side, 512, dtype=dtype) for side in (25, 50))
    enlarge.forward(small, large, torch.empty_like(large))
    formats = {"first": torch.contiguous_format, "last": torch.channels_last}
    stem = torch.empty(2, 128, 237, 237, dtype=dtype, memory_format=torch.channels_last)
    max_pool.forward(stem, 3, 2, 1)
    maps = [
        torch.empty(2, 1024, 60, 60, dtype=one, memory_format=formats[layout])
        for one in (torch.float32, dtype, dtype)
    ]
    constant = torch.empty(2, 1024, dtype=dtype)
    weights = torch.empty(2, 60, 60)
    weighted_maps.forward((maps[0], maps[0]), weights, constant, maps[1], 0.3, maps[2])


# The products of large matrices, which must use the tensor cores.
PRODUCTS = {
    "_convolve",
    "_gather",
    "_correlate",
    "_match",
    "_exponentials",
    "_times_rows",
    "_slopes",
    "_transposed_times_rows",
}
# What streams features through, which must do it in 16 bytes.
STREAMS = {
    *("_sum_positions", "_sum_channels", "_sum_channels_of_many", "_one_each", "_to_rows"),
    "_inverse_norms",
}
# What reads maps once without shared memory, in 16 bytes too.
MAPS = {"_confident", "_enlarge", "_max_pool", "_weighted"}
EXPECTED = {
    inference: MAPS,
    pool: {"_resize", "_sum_positions", "_spread", "_sum_channels"},
    prototypes: {
        *("_sum_channels", "_sum_channels_of_many", "_one_each", "_spread", "_sum_positions"),
        "_one_each_backward",
    },
    correlation: {"_to_rows", "_inverse_norms", "_correlate"},
    pivot: {"_convolve", "_gather", "_statistics", "_apply"},
    matching: {
        *("_select", "_exponentials", "_times_rows", "_match", "_combine"),
        "_combine_maxima",
    },
    matching_backward: {"_to_rows", "_select", "_slopes", "_times_rows", "_transposed_times_rows"},
}


def check(
    launch: Callable[[torch.dtype, str], None], dtype: torch.dtype, layout: str, arch: int
) -> None:
    kernels = compiled(partial(launch, dtype, layout), arch)
    assert EXPECTED[launch] <= {kernel.name for kernel in kernels}
    for kernel in kernels:
        assert kernel.shared <= SHARED_MEMORY[arch], kernel.name
        assert kernel.spilled <= MOST_SPILLED, (kernel.name, kernel.spilled)
        if kernel.name in PRODUCTS:
            assert kernel.tensor_cores, kernel.name
        # Rows of 50 x 50 channels-first maps begin at multiples of 8 bytes. float16's gradients
        # are products of tf32, which the tensor cores take in one order alone: what is summed over
        # must be contiguous, so that the transposed one is copied in single elements.
        narrow = (launch is correlation and kernel.name == "_to_rows") or (
            dtype == torch.float16 and kernel.name == "_transposed_times_rows"
        )
        # A tap of four channels is 8 bytes.
        narrow |= kernel.name == "_gather"
        if kernel.name in PRODUCTS | STREAMS and not narrow:
            assert kernel.wide_copies, kernel.name
        if kernel.name in MAPS:
            assert "ld.global.v4" in kernel.ptx, kernel.name


@pytest.mark.parametrize("launch", EXPECTED, ids=lambda one: one.__name__)
def test_for_hopper(launch):
    check(launch, torch.bfloat16, "first", 90)


@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("launch", EXPECTED, ids=lambda one: one.__name__)
def test_for_every_dtype_and_layout(launch, dtype, layout, arch):
    check(launch, dtype, layout, arch)


@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_configuration_fits(dtype, arch):
    """What `bench.gpu --tune` may put in a first configuration's place."""
    from fastfss.kernels import _center_pivot_products as convolution
    from fastfss.kernels import _dense_match_blocks, _launch, dense_correlation, dense_match
    from fastfss.kernels import dense_match_backward as backward

    wide = dtype == torch.float32
    blocks = _dense_match_blocks.CONFIGS_FLOAT32 if wide else _dense_match_blocks.CONFIGS
    exponentials = blocks if wide else _dense_match_blocks.EXPONENTIALS
    tables = {
        "center_pivot_conv4d": (
            pivot,
            convolution.CONFIGS_FLOAT32 if wide else convolution.CONFIGS,
        ),
        "center_pivot_conv4d_gathered": (
            pivot,
            convolution.CONFIGS_GATHERED_FLOAT32 if wide else convolution.CONFIGS_GATHERED,
        ),
        "dense_correlation": (
            correlation,
            dense_correlation.CONFIGS_FLOAT32 if wide else dense_correlation.CONFIGS,
        ),
        "dense_match_max": (matching, dense_match.OF_FLOAT32 if wide else dense_match.OF_MAXIMA),
        "dense_match_exponentials": (matching, exponentials),
        "dense_match_values": (matching, blocks),
        "dense_match_transposed": (matching_backward, blocks),
        "dense_match_slopes": (
            matching_backward,
            backward.SLOPES_FLOAT32 if wide else backward.SLOPES,
        ),
    }
    for name, (launch, configs) in tables.items():
        for config in configs:
            _launch.overrides[name] = config
            try:
                kernels = compiled(partial(launch, dtype, "last"), arch)
            finally:
                del _launch.overrides[name]
            assert max(kernel.shared for kernel in kernels) <= SHARED_MEMORY[arch], (name, config)
