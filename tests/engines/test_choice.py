""" "auto": the fastest engine, measured once, never a precision that costs much."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from fastfss import engines
from fastfss.engines import Cost, Manifest
from fastfss.engines.choice import TRIALS, Trial, why_not_silently
from tests.engines.conftest import Exported

CPU = torch.device("cpu")


def test_auto_takes_the_fastest_and_says_why(own_copy: Path) -> None:
    engine = engines.load(own_copy)
    assert engine.why.startswith(f"auto: {engine.name} is the fastest here")
    assert "not cuda-graph: CUDA graphs run on an NVIDIA GPU" in engine.why
    assert "not torch-compile" in engine.why
    (trial,) = json.loads((own_copy / TRIALS).read_text()).values()
    assert set(trial["seconds"]) == {"eager", "onnxruntime", "openvino"}
    assert engine.why in str(engine.stats())


def test_what_was_measured_is_remembered(own_copy: Path) -> None:
    engines.load(own_copy)
    found = json.loads((own_copy / TRIALS).read_text())
    (trial,) = found.values()
    trial["seconds"] = {"eager": [1.0, 1.0], "onnxruntime": [0.1, 0.1]}
    (own_copy / TRIALS).write_text(json.dumps(found))
    engine = engines.load(own_copy)
    assert engine.name == "onnxruntime"
    assert engine.why.endswith("(measured earlier)")


def test_other_threads_are_measured_anew(own_copy: Path) -> None:
    threads = torch.get_num_threads()
    engines.load(own_copy)
    try:
        torch.set_num_threads(threads + 1)
        assert "measured earlier" not in engines.load(own_copy).why
    finally:
        torch.set_num_threads(threads)
    assert len(json.loads((own_copy / TRIALS).read_text())) == 2


@pytest.mark.parametrize("text", ["", "[]", '{"a": 1}', "\x00"])
def test_damaged_memories_are_measured_anew(text: str, own_copy: Path) -> None:
    (own_copy / TRIALS).write_text(text)
    assert engines.load(own_copy).why.startswith("auto: ")


def test_a_library_that_fails_is_no_reason_not_to_use_another(
    own_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("libsomething.so: no such file")

    monkeypatch.setattr("fastfss.engines.openvino_runtime.compiled", broken)
    engine = engines.load(own_copy)
    assert "openvino" not in engine.name
    assert "not openvino: it failed: libsomething.so: no such file" in engine.why


def test_a_folder_that_cannot_be_written_is_measured_each_time(
    own_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError("read only")

    monkeypatch.setattr("fastfss.engines.choice.write_text_atomically", refused)
    assert engines.load(own_copy).why.startswith("auto: ")
    assert not (own_copy / TRIALS).exists()


def test_two_backends_where_each_does_one_graph_much_faster() -> None:
    trial = Trial({"eager": (1.0, 0.1), "openvino": (0.3, 0.9), "onnxruntime": (0.5, 0.6)})
    assert trial.best == "openvino+eager"
    close = Trial({"eager": (0.31, 0.1), "openvino": (0.3, 0.9)})
    assert close.best == "eager"


@pytest.mark.parametrize(
    ("cost", "reason"),
    [
        (None, "not known: export with --check"),
        (Cost(60.0, 59.4, 3, 30), "costs 0.60 points of mIoU, more than 0.5"),
        (Cost(60.0, 59.6, 3, 30), None),
        (Cost(60.0, 60.4, 3, 30), None),
    ],
)
def test_a_precision_is_silent_only_where_it_costs_little(
    cost: Cost | None, reason: str | None, exported: Exported
) -> None:
    exact = Manifest.read(exported("ssp"))
    assert why_not_silently(exact) is None
    low = dataclasses.replace(exact, precision="int8", cost=cost)
    found = why_not_silently(low)
    assert found is None if reason is None else reason in str(found)


def test_auto_takes_float32_where_the_graphs_cost_is_unknown(own_copy: Path) -> None:
    dataclasses.replace(Manifest.read(own_copy), precision="fp16").write(own_copy)
    engine = engines.load(own_copy)
    assert engine.name == "eager" and engine.exact
    assert "not onnxruntime: what fp16 costs is not known" in engine.why
