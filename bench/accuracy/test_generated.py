"""mIoU and latency of methods on the generated set, on the default model's frozen encoder.

    pytest bench/accuracy --benchmark-json FILE

One annotated image, eight queries a class, the same for every method; the figures are those of
bench/accuracy/frozen.py, the time the CPU's of a query, by one thread, its support fitted. The
default model has seen none of these images; its head is trained on photographs.
FASTFSS_BENCH_DATA=FOLDER takes a folder in a layout of bench/accuracy/sets.py instead: label maps,
or one folder a class.
"""

from __future__ import annotations

import os
import statistics
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import fastfss
from bench.accuracy.frozen import score
from bench.accuracy.sets import episodes, read_set
from bench.data.generated import write_set
from fastfss import Result, Task
from fastfss.methods import FewShotSegmenter

# A set of one's own; None: the generated one.
GIVEN = os.environ.get("FASTFSS_BENCH_DATA")
SIZE = 320
# Images of the set, and episodes a class.
IMAGES, QUERIES = 72, 8
LAYERS = {
    "mlc": ("layer3", "layer4"),
    "ssp": ("layer3", "layer4"),
    "propagation": ("layer2", "layer3", "layer4"),
}


@cache
def frozen() -> FewShotSegmenter:
    return fastfss.create_model("default").eval()


def model_of(method: str) -> FewShotSegmenter:
    """The method on the default model's encoder, for prediction."""
    if method == "default":
        return frozen().for_inference()
    made = fastfss.create_model(method, encoder=frozen().encoder, layers=LAYERS[method], size=SIZE)
    return made.eval().for_inference()


class Timed:
    """A model that remembers how long its queries took."""

    def __init__(self, model: FewShotSegmenter) -> None:
        self.model = model
        self.fit = model.fit
        self.seconds: list[float] = []

    def predict(self, query: Path, task: Task) -> Result:
        started = time.process_time()
        result = self.model.predict(query, task)
        self.seconds.append(time.process_time() - started)
        return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if GIVEN:
        return Path(GIVEN)
    made = tmp_path_factory.mktemp("generated")
    write_set(made, images=IMAGES)
    return made


@pytest.mark.filterwarnings("ignore:this model has random weights")
@pytest.mark.parametrize("method", ["mlc", "ssp", "propagation", "default"])
def test_miou_and_latency(benchmark: Any, method: str, folder: Path) -> None:
    torch.set_num_threads(1)
    chosen = list(episodes(read_set(folder), shots=1, queries=QUERIES, seed=0))
    timed = Timed(model_of(method))
    figures = score(timed, chosen)  # type: ignore[arg-type]
    found = {
        "miou": figures["miou"],
        "query_ms": round(1e3 * statistics.median(timed.seconds), 1),
        "episodes": len(chosen),
    }
    benchmark.pedantic(lambda: None, rounds=1)
    benchmark.extra_info.update(
        method=method,
        encoder=frozen().encoder.name,
        set=Path(GIVEN).name if GIVEN else "generated",
        shots=1,
        **found,
    )
    print(f"\n{method}: {found}, {figures}")
    # Neither solved nor hopeless: a random guess of a class's mean area has an IoU of about 5.
    assert GIVEN or 5 < figures["miou"] < 90
