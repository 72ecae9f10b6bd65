"""SSP with ResNet-50 at 473 px in every engine, against the published eager float32 forward.

One thread; the supports lie in a Task, which the published forward encodes again for every query.
Both it and our eager head are made to select what bench/methods/selections.py says; the exported
graphs, which compute every position whatever is selected, select by themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.compare import compare
from bench.methods.selections import Forced, published_selections
from bench.methods.test_ssp import SIZE
from fastfss import SSP, Task, create_encoder, engines
from fastfss.engines import Engine
from fastfss.engines.examples import ExportSettings
from fastfss.engines.export import export_engine
from fastfss.engines.manifest import Precision
from fastfss.methods import FewShotSegmenter
from tests.methods.published_ssp import published_forward

FORMS: dict[str, tuple[Precision, str]] = {
    "eager": ("fp32", "eager"),
    "onnxruntime": ("fp32", "onnxruntime"),
    "openvino": ("fp32", "openvino"),
    "openvino+eager": ("fp32", "openvino+eager"),
    "openvino bf16+eager": ("bf16", "openvino+eager"),
}


@pytest.fixture(scope="module")
def model() -> FewShotSegmenter:
    torch.manual_seed(0)
    return SSP(create_encoder("deep_resnet50")).eval()


@pytest.fixture(scope="module", params=[1, 5])
def loaded(
    request: pytest.FixtureRequest,
    model: FewShotSegmenter,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[int, dict[str, Engine]]:
    """The number of shots, and the engines."""
    root: Path = tmp_path_factory.mktemp("engines")
    shots: int = request.param
    for precision in ("fp32", "bf16"):
        settings = ExportSettings((SIZE, SIZE), shots=shots, precision=precision)
        export_engine(model, root / precision, settings, report=lambda _: None)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # libraries take the number when they load
    try:
        held = {n: engines.load(root / folder, b) for n, (folder, b) in FORMS.items()}
    finally:
        torch.set_num_threads(threads)
    return shots, held


def record(benchmark: Any, title: str, forms: dict[str, Callable[[], Any]]) -> None:
    with torch.inference_mode():
        measured = compare(forms, seconds=40, min_rounds=3, caches="warm")
        benchmark.pedantic(forms["onnxruntime"], rounds=1)
    ratios = {f"{name}_ratio": round(measured.ratio("published", name), 2) for name in FORMS}
    benchmark.extra_info.update(measured.as_dict(), **ratios)
    print(f"\n{title}: {measured}")


def test_query_with_cached_support(
    benchmark: Any,
    monkeypatch: pytest.MonkeyPatch,
    model: FewShotSegmenter,
    loaded: tuple[int, dict[str, Engine]],
) -> None:
    shots, held = loaded
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, shots, 3, SIZE, SIZE, generator=generator)
    masks = torch.zeros(1, shots, SIZE, SIZE)
    masks[..., 100:300, 150:350] = 1
    query = torch.randn(1, 3, SIZE, SIZE, generator=generator)
    task = model.encode_support(images, masks)
    supports, support_masks = list(images.unbind(1)), list(masks.unbind(1))

    with torch.inference_mode():
        wanted = model.segment(query, task).logits
        for name, engine in held.items():
            error = (engine.segment(query, task).logits - wanted).norm() / wanted.norm()
            benchmark.extra_info[f"{name}_relative_difference"] = float(error)
            assert error < (2e-2 if "bf16" in name else 1e-3)

    monkeypatch.setattr("fastfss.methods.self_support.select", Forced())
    forced = published_selections()

    def published() -> Tensor:
        return published_forward(
            model.encoder, "layer3", supports, support_masks, query, selected=forced
        )

    def ours(engine: Engine, task: Task) -> Tensor:
        return engine.segment(query, task).logits

    forms: dict[str, Callable[[], Any]] = {"published": published}
    forms |= {name: partial(ours, engine, task) for name, engine in held.items()}
    record(benchmark, f"SSP {shots}-shot", forms)


def test_encode_alone(
    benchmark: Any, model: FewShotSegmenter, loaded: tuple[int, dict[str, Engine]]
) -> None:
    shots, held = loaded
    if shots != 1:
        pytest.skip("the encode graph does not know of shots")
    query = torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    forms: dict[str, Callable[[], Any]] = {
        "published": lambda: model.encoder(query, ("layer3",))["layer3"]
    }
    forms |= {name: partial(engine.encode, query) for name, engine in held.items()}
    record(benchmark, "encode", forms)
