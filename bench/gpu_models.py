"""Whole methods on a GPU: a query with its supports encoded, against the published forward.

    python -m bench.gpu_models --out FILE.json [--profile FOLDER]

Ours runs in bfloat16, called and as one CUDA graph, at batch 1 and at a batch that fills the card;
the published forward, which encodes the supports again for every query, in float32 as published,
and in bfloat16. Weights are random. SSP's would select few positions, so both sides are made to
select what bench/methods/selections.py says.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from bench.gpu import ceilings, eager, machine, write
from bench.methods.selections import Forced, published_selections
from fastfss import create_model
from fastfss.methods import FewShotSegmenter, self_support
from tests.methods.published_hsnet import published_predict
from tests.methods.published_ssp import published_forward

# Queries at once; the first is what a video's frame takes.
BATCHES = (1, 32)


@dataclass(frozen=True)
class Method:
    """A method as it is measured: its published forward takes supports, masks and a query."""

    name: str
    size: int
    published: Callable[[FewShotSegmenter, list[Tensor], list[Tensor], Tensor], Any]


def _ssp(
    model: FewShotSegmenter, images: list[Tensor], masks: list[Tensor], query: Tensor
) -> Tensor:
    forced = published_selections(query.device)
    return published_forward(model.encoder, "layer3", images, masks, query, selected=forced)


METHODS = (
    Method("ssp", 473, _ssp),
    Method("hsnet", 400, published_predict),  # type: ignore[arg-type]
)


def measure(method: Method, batches: Sequence[int], profiles: Path | None) -> list[dict[str, Any]]:
    """A row a batch."""
    torch.manual_seed(0)
    model = create_model(method.name).eval().cuda()
    fast = model.for_inference(dtype=torch.bfloat16)
    side = method.size
    images = torch.randn(1, 1, 3, side, side, device="cuda")
    masks = torch.zeros(1, 1, side, side, device="cuda")
    masks[..., 100:300, 150:350] = 1
    supports, of_supports = list(images.unbind(1)), list(masks.unbind(1))
    task = fast.encode_support(images.bfloat16(), masks)
    query = torch.randn(1, 3, side, side, device="cuda")
    published = eager([lambda: method.published(model, supports, of_supports, query)] * 10)
    narrow = create_model(method.name).eval().cuda().bfloat16()
    typed = [one.bfloat16() for one in supports], query.bfloat16()
    in_16 = eager([lambda: method.published(narrow, typed[0], of_supports, typed[1])] * 10)
    theirs = {
        "published_float32_us": round(published * 1e6, 1),
        "published_bfloat16_us": round(in_16 * 1e6, 1),
    }
    rows = []
    for batch in batches:
        queries = torch.randn(batch, 3, side, side, device="cuda", dtype=torch.bfloat16)
        segment = fast.graphed(task, tuple(queries.shape))
        called = eager([partial(fast.segment, queries, task)] * 10)
        replayed = eager([partial(segment, queries)] * 30)
        # One after another without waiting, as a video's frames come.
        many = 20
        sustained = eager([partial(_repeat, segment, queries, many)] * 5) / many
        if profiles is not None:
            profile(profiles / f"{method.name}_{batch}.txt", partial(segment, queries))
        rows.append(
            {
                "case": f"{method.name} {batch}x{side}x{side}",
                "dtype": "bfloat16",
                "ours_us": round(replayed * 1e6, 1),
                "ours_sustained_us": round(sustained * 1e6, 1),
                "ours_called_us": round(called * 1e6, 1),
                "queries_s": round(batch / sustained),
                **theirs,
                "published/ours": round(published * batch / replayed, 1),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    return rows


def _repeat(segment: Callable[[Tensor], Any], queries: Tensor, count: int) -> None:
    for _ in range(count):
        segment(queries)


def profile(path: Path, call: Callable[[], Any], calls: int = 5) -> None:
    """What the GPU spends its time on, a kernel a line."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        for _ in range(calls):
            call()
        torch.cuda.synchronize()
    found = sorted(seen.key_averages(), key=lambda one: -one.self_device_time_total)
    lines = [
        f"{one.self_device_time_total / calls:10.1f} us {one.count / calls:6.1f} {one.key[:150]}"
        for one in found
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu_models", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--out", type=Path, required=True, help="where the rows go, JSON")
    parser.add_argument("--profile", type=Path, metavar="FOLDER", help="kernels' times, in text")
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("bench.gpu_models: torch sees no NVIDIA GPU, which this needs", file=sys.stderr)
        return 1
    about = machine(ceilings()) | {"command": "python -m bench.gpu_models"}
    print(json.dumps(about))
    rows: list[dict[str, Any]] = []
    # Libraries choose among their convolutions by time, as any server would let them.
    torch.backends.cudnn.benchmark = True
    # Our own selection takes its time all the same.
    forced = Forced("cuda", own=self_support.select)
    with (
        torch.inference_mode(),
        mock.patch("fastfss.methods.self_support.select", forced),
    ):
        for method in METHODS:
            rows += measure(method, options.batches, options.profile)
            write(options.out, about, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
