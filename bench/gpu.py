"""Every operation on a GPU, against the published formulation and against torch.compile.

    python -m bench.gpu --out FILE.json        measure all, in under four minutes
    python -m bench.gpu --tune                 time the configurations of the large products

Inputs rotate through more memory than the L2 holds, so every call finds its inputs cold. Two times
are taken of ours: replayed in a CUDA graph, which is the GPU's work alone and is what bandwidth and
rate are computed from, and called one by one, as the published form is, which is not capturable
where it waits for the GPU. Where kernels in CUDA C++ serve, Triton's are timed beside them, and the
other way round. All are medians; the two ceilings, a copy and a matrix product in bfloat16, are
measured in the same run.
Every result is compared with the published form before it is timed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.gpu_cases import CASES, Case, Function
from fastfss.ops import _cuda_call
from tests.tolerances import RELATIVE

DTYPES = (torch.bfloat16, torch.float16, torch.float32)

# Inputs rotate through this much: three times the 60 MB of an H200's L2.
ROTATION_BYTES = 192 << 20
# More sets make graphs that take long to capture.
MOST_SETS = 32

Clock = Callable[[Sequence[Callable[[], Any]]], float]


@dataclass(frozen=True)
class Ceilings:
    """What the card reached in this run: bytes and operations a second."""

    copy: float
    products: float

    def row(self, seconds: float, moved: float, flop: float) -> dict[str, float]:
        """Achieved rates, and the share of the larger of the two floors."""
        floor = max(moved / self.copy, flop / self.products)
        return {
            "gb_s": round(moved / seconds / 1e9, 1),
            "tflop_s": round(flop / seconds / 1e12, 1),
            "of_copy": round(moved / seconds / self.copy, 3),
            "of_products": round(flop / seconds / self.products, 3),
            "floor_us": round(floor * 1e6, 2),
            "of_floor": round(floor / seconds, 3),
        }


def eager(calls: Sequence[Callable[[], Any]], *, rounds: int = 5, most: float = 0.5) -> float:
    """Median seconds of one call, between events, one after the other."""
    for call in calls[:2]:
        call()
    times = []
    deadline = time.perf_counter() + most
    for _ in range(rounds):
        for call in calls:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) * 1e-3)
            if time.perf_counter() > deadline and len(times) >= 3:
                return statistics.median(times)
    return statistics.median(times)


def replayed(calls: Sequence[Callable[[], Any]], *, rounds: int = 15) -> float:
    """Median seconds of one call within a CUDA graph of all."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        calls[0]()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    return eager([graph.replay] * rounds, rounds=1) / len(calls)


def ceilings() -> Ceilings:
    """A copy of 1 GiB, read and written, and a product of 8192 x 8192 matrices."""
    source, target = torch.empty(2, 1 << 30, dtype=torch.uint8, device="cuda").random_().unbind()
    copy = eager([lambda: target.copy_(source)] * 10)
    a, b = torch.randn(2, 8192, 8192, device="cuda").bfloat16().unbind()
    product = eager([lambda: a @ b] * 10)
    return Ceilings(2 * (1 << 30) / copy, 2 * 8192.0**3 / product)


def sets_for(case: Case, dtype: torch.dtype) -> int:
    """How many sets of inputs pass through the L2 before one comes back."""
    return max(2, min(MOST_SETS, round(ROTATION_BYTES / case.work(dtype)[0])))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def bound(function: Function, sets: Sequence[tuple[Any, ...]]) -> list[Callable[[], Any]]:
    """A call for each set of inputs."""
    return [partial(function, *inputs) for inputs in sets]


def check(case: Case, dtype: torch.dtype, inputs: tuple[Any, ...]) -> float:
    """The largest difference from the published form in float32, relative; too large is an error.

    Raises:
        RuntimeError: if ours is not what the published form computes.
    """
    wide = [_as_float32(one) for one in inputs]
    # Without TF32's products of 10 bits, PyTorch's default, in the convolutions of either.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        wanted, ours = case.published(*wide), case.ours(*inputs)
    error = float((ours.float() - wanted).abs().max() / wanted.abs().max())
    if not error <= case.tolerance * RELATIVE[dtype]:
        raise RuntimeError(f"{case.name} {dtype}: differs by {error:.2e} from the published form")
    return error


def _as_float32(one: Any) -> Any:
    if isinstance(one, list):
        return [_as_float32(item) for item in one]
    return one.float() if isinstance(one, Tensor) and one.is_floating_point() else one


def has_cuda_kernels(device: torch.device) -> bool:
    """Whether kernels in CUDA C++ serve the device in this build."""
    return _cuda_call.why_not_cuda(torch.empty(1, 1, 1, 1, device=device)) is None


def measure(
    case: Case,
    dtype: torch.dtype,
    limits: Ceilings,
    *,
    device: torch.device,
    by_graph: Clock = replayed,
    one_by_one: Clock = eager,
) -> dict[str, Any]:
    """The row of one case."""
    sets = [case.inputs(dtype, device) for _ in range(sets_for(case, dtype))]
    error = check(case, dtype, sets[0])
    ours = bound(case.ours, sets)
    alone, called = by_graph(ours), one_by_one(ours)
    published = one_by_one(bound(case.published, sets))
    both = {"triton_us": case.by_triton, "cuda_us": case.by_cuda}
    both = both if has_cuda_kernels(device) else {}
    each = {name: by_graph(bound(one, sets)) for name, one in both.items() if one is not None}
    products = None if case.products is None else by_graph(bound(case.products, sets))
    return {
        "case": case.name,
        "dtype": _name(dtype),
        "error": float(f"{error:.2g}"),
        "ours_us": round(alone * 1e6, 2),
        "ours_called_us": round(called * 1e6, 2),
        "published_us": round(published * 1e6, 2),
        "published/ours": round(published / called, 2),
        **{name: round(seconds * 1e6, 2) for name, seconds in each.items()},
        **({} if products is None else {"products_us": round(products * 1e6, 2)}),
        **limits.row(alone, *case.work(dtype)),
    }


def measure_compiled(
    case: Case, dtype: torch.dtype, *, device: torch.device, clock: Clock = replayed
) -> float:
    """Seconds of the reference under torch.compile, within a graph."""
    sets = [case.inputs(dtype, device) for _ in range(sets_for(case, dtype))]
    torch.compiler.reset()
    function = torch.compile(case.reference, fullgraph=True, dynamic=False)
    function(*sets[0])
    return clock(bound(function, sets))


def tunable() -> list[tuple[str, Case, dict[torch.dtype, list[Any]]]]:
    """Each large product's name, a case that it dominates, and its configurations."""
    from fastfss.kernels import _dense_match_blocks as blocks
    from fastfss.kernels import dense_correlation, dense_match
    from fastfss.kernels import dense_match_backward as backward

    def entry(name: str, case: str, narrow: list[Any], wide: list[Any]) -> Any:
        found = [one for one in CASES if one.name.startswith(case)]
        return name, found[-1], {torch.bfloat16: narrow, torch.float32: wide}

    in_blocks = blocks.CONFIGS, blocks.CONFIGS_FLOAT32
    of_layers = dense_correlation.CONFIGS, dense_correlation.CONFIGS_FLOAT32
    gradient = "gradient of dense_match"
    return [
        entry("dense_correlation", "dense_correlation", *of_layers),
        entry(
            "dense_match_exponentials",
            "dense_match SSP",
            blocks.EXPONENTIALS,
            blocks.CONFIGS_FLOAT32,
        ),
        entry("dense_match_values", "dense_match SSP", *in_blocks),
        entry(
            "dense_match_max", "dense_match prior", dense_match.OF_MAXIMA, dense_match.OF_FLOAT32
        ),
        entry(
            "dense_match",
            "dense_match attention",
            dense_match.OF_FEW_VALUES,
            dense_match.OF_FLOAT32,
        ),
        entry("dense_match_slopes", gradient, backward.SLOPES, backward.SLOPES_FLOAT32),
        entry("dense_match_transposed", gradient, *in_blocks),
    ]


def tune(names: Sequence[str], *, device: torch.device, clock: Clock = replayed) -> None:
    """Print the time of every configuration; the first of a kernel's is the one in use."""
    from fastfss.kernels import _launch

    for name, case, configs in tunable():
        if names and name not in names:
            continue
        for dtype, of_dtype in configs.items():
            sets = [case.inputs(dtype, device) for _ in range(sets_for(case, dtype))]
            for config in of_dtype:
                _launch.overrides[name] = config
                try:
                    seconds = clock(bound(case.by_triton or case.ours, sets))
                finally:
                    del _launch.overrides[name]
                print(f"{name:26} {dtype!s:15} {seconds * 1e6:9.1f} us  {config}", flush=True)


def commit() -> str:
    """The checkout's commit, with a mark where files differ from it; "unknown" without git."""
    here = Path(__file__).parent
    command = ["git", "describe", "--always", "--dirty", "--abbrev=7", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def machine(limits: Ceilings) -> dict[str, Any]:
    """What the rows were measured on."""
    return {
        "commit": commit(),
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": metadata.version("triton"),
        "date": datetime.date.today().isoformat(),
        "command": "python -m bench.gpu",
        "copy_gb_s": round(limits.copy / 1e9),
        "bfloat16_tflop_s": round(limits.products / 1e12),
    }


def write(path: Path, about: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    """One row a line, as bench/results has them."""
    lines = ",\n".join(json.dumps(row) for row in rows)
    path.write_text(f'{{\n"machine": {json.dumps(about)},\n"rows": [\n{lines}\n]\n}}\n')


def attempt(
    case: Case, dtype: torch.dtype, limits: Ceilings, device: torch.device
) -> dict[str, Any]:
    """The row of one case, or what went wrong: one failure does not cost the others their time."""
    try:
        return measure(case, dtype, limits, device=device)
    except (RuntimeError, ValueError, torch.OutOfMemoryError) as error:
        return {"case": case.name, "dtype": _name(dtype), "failed": str(error).split("\n")[0]}


def run(out: Path, cases: Sequence[Case], dtypes: Sequence[torch.dtype], seconds: float) -> bool:
    """All cases; then, while time is left, the compiled references. Whether all went well."""
    started, device = time.perf_counter(), torch.device("cuda")
    limits = ceilings()
    about = machine(limits)
    print(json.dumps(about))
    pairs = [(case, dtype) for dtype in dtypes for case in cases]
    rows: list[dict[str, Any]] = []
    for case, dtype in pairs:
        rows.append(attempt(case, dtype, limits, device))
        print(json.dumps(rows[-1]), flush=True)
        write(out, about, rows)
        torch.cuda.empty_cache()
    for (case, dtype), row in zip(pairs, rows, strict=True):
        if case.reference is None or "failed" in row:
            continue
        if time.perf_counter() - started > seconds:
            row["compiled_us"] = None
            continue
        compiled = measure_compiled(case, dtype, device=device)
        row["compiled_us"] = round(compiled * 1e6, 2)
        row["compiled/ours"] = round(compiled * 1e6 / row["ours_us"], 2)
        print(f"{row['case']} {row['dtype']}: compiled / ours {row['compiled/ours']}", flush=True)
        write(out, about, rows)
    write(out, about, rows)
    print(f"{out}: {len(rows)} rows in {time.perf_counter() - started:.0f} s")
    return not any("failed" in row for row in rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--out", type=Path, help="where the rows go, JSON")
    parser.add_argument("--tune", nargs="*", metavar="KERNEL", help="time configurations instead")
    parser.add_argument("--cases", default="", metavar="TEXT", help="only those named with it")
    parser.add_argument(
        "--dtypes",
        nargs="+",
        choices=[_name(dtype) for dtype in DTYPES],
        default=[_name(dtype) for dtype in DTYPES],
    )
    parser.add_argument(
        "--seconds", type=float, default=180, help="when to stop compiling references (180)"
    )
    options = parser.parse_args(arguments)
    if options.out is None and options.tune is None:
        parser.error("--out FILE.json or --tune is needed")
    if not torch.cuda.is_available():
        print("bench.gpu: torch sees no NVIDIA GPU, which all of this needs", file=sys.stderr)
        return 1
    with torch.no_grad():
        if options.tune is not None:
            tune(options.tune, device=torch.device("cuda"))
            return 0
        dtypes = [dtype for dtype in DTYPES if _name(dtype) in options.dtypes]
        cases = [case for case in CASES if options.cases in case.name]
        return 0 if run(options.out, cases, dtypes, options.seconds) else 1


if __name__ == "__main__":
    sys.exit(main())
