"""What `load` gives, what engines tell of themselves, and what they refuse."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastfss import Task, engines
from fastfss.engines import EngineError, Manifest
from fastfss.engines.base import task_input
from fastfss.engines.manifest import ENCODE, MANIFEST, MATCH, WEIGHTS
from tests.engines.conftest import Exported
from tests.engines.small import annotated, fitted, model

pytestmark = pytest.mark.filterwarnings("ignore:.*random weights.*:UserWarning")


def test_a_manifest_is_read_as_it_was_written(exported: Exported, tmp_path: Path) -> None:
    manifest = Manifest.read(exported("ssp"))
    manifest.write(tmp_path)
    assert Manifest.read(tmp_path, digests=False) == manifest
    assert manifest.method == "ssp"
    assert manifest.image_size == (65, 97)
    assert manifest.encode.inputs[0].shape == (1, 3, 65, 97)
    assert {spec.name for spec in manifest.task} == set(fitted("ssp").tensors)
    assert "ssp" in str(manifest) and "65 x 97" in str(manifest)


@pytest.mark.parametrize("name", [ENCODE, MATCH])
def test_a_truncated_graph_is_refused(name: str, own_copy: Path) -> None:
    content = (own_copy / name).read_bytes()
    (own_copy / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(EngineError, match=f"{name}: truncated or another file"):
        engines.load(own_copy, "onnxruntime")


def test_a_graph_of_another_engine_is_refused(own_copy: Path, exported: Exported) -> None:
    shutil.copy(exported("panet") / MATCH, own_copy / MATCH)
    with pytest.raises(EngineError, match="another file"):
        engines.load(own_copy)


def test_other_weights_are_refused(own_copy: Path, exported: Exported) -> None:
    shutil.copy(exported("panet") / WEIGHTS, own_copy / WEIGHTS)
    with pytest.raises(EngineError, match=f"{WEIGHTS}: truncated or another file"):
        engines.load(own_copy, "eager")


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"format": "another"}', '{"format": "fastfss-engine-1", "method": "ssp"}'],
)
def test_a_damaged_manifest_is_refused(text: str, own_copy: Path) -> None:
    (own_copy / MANIFEST).write_text(text)
    with pytest.raises(EngineError, match="manifest"):
        engines.load(own_copy)


def test_a_missing_folder_or_graph_is_named(own_copy: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected an engine folder"):
        engines.load(tmp_path / "nowhere")
    (own_copy / ENCODE).unlink()
    with pytest.raises(FileNotFoundError, match=ENCODE):
        engines.load(own_copy)


def test_an_unknown_backend_is_refused_with_the_known_ones(exported: Exported) -> None:
    with pytest.raises(ValueError, match=r"backend: expected auto or one of eager, .*'tensorflow'"):
        engines.load(exported("ssp"), "tensorflow")


def test_a_backend_that_cannot_serve_says_why(exported: Exported) -> None:
    with pytest.raises(NotImplementedError, match="CUDA graphs run on an NVIDIA GPU"):
        engines.load(exported("ssp"), "cuda-graph")
    for backend in ("onnxruntime", "openvino"):
        pytest.importorskip(backend)
        with pytest.raises(NotImplementedError, match="on the CPU"):
            engines.load(exported("ssp"), backend, device="cuda")


def test_tasks_of_others_are_refused(exported: Exported) -> None:
    engine = engines.load(exported("ssp"), "onnxruntime")
    image, _ = annotated((90, 120), 3)
    with pytest.raises(ValueError, match="task"):
        engine.predict(image, fitted("panet"))
    task = fitted("ssp")
    other = Task("ssp", task.tensors, settings={**task.settings, "weights": "0" * 16})
    with pytest.raises(ValueError, match="weights"):
        engine.predict(image, other)
    with pytest.raises(ValueError, match=r"task: expected a task of 1 or 2 shots.*3 shots"):
        engine.predict(image, fitted("ssp", shots=3))
    with pytest.raises(ValueError, match="tasks: expected 1, the engine's ways, got 2"):
        engine.predict(image, [task, task])


def test_ways_of_different_shots_are_refused(exported: Exported) -> None:
    engine = engines.load(exported("guided-late", ways=2), "onnxruntime")
    tasks = [fitted("guided-late", shots=1), fitted("guided-late")]
    with pytest.raises(ValueError, match="tasks: expected as many shots in every way, got 1, 2"):
        engine.predict(annotated((64, 64), 1)[0], tasks)


def test_images_and_maps_of_another_size_are_refused(exported: Exported) -> None:
    engine = engines.load(exported("ssp"), "onnxruntime")
    with pytest.raises(ValueError, match=r"images: expected \(1, 3, 65, 97\)"):
        engine.encode(torch.zeros(1, 3, 65, 65))
    smaller = model("ssp").encode(torch.zeros(1, 3, 65, 65))
    with pytest.raises(ValueError, match="features: expected a map"):
        engine.match(smaller, fitted("ssp"))


def test_a_task_that_fits_is_matched_itself_and_not_a_copy(exported: Exported) -> None:
    """What DCAMA, PPNet and guided networks make of a task once is known by its tensors."""
    engine = engines.load(exported("panet"), "eager")
    features = model("panet").encode(torch.zeros(1, 3, *engine.manifest.fixed_size()))
    task = fitted("panet")
    inputs = engine.match_inputs(features, task)
    for name, tensor in task.tensors.items():
        assert inputs[task_input(1, name)] is tensor
    wanting = Task(task.method, {k: t.clone().requires_grad_() for k, t in task.tensors.items()})
    assert not any(one.requires_grad for one in engine.match_inputs(features, wanting).values())


def test_stats_tell_of_load_first_call_and_medians(exported: Exported) -> None:
    engine = engines.load(exported("ssp"), "onnxruntime")
    stats = engine.stats()
    assert stats.load_seconds > 0
    assert stats.first_seconds is None and stats.encode_ms is None
    assert "not yet" in str(stats)
    stats = engine.warm_up(3)
    assert stats.backend == "onnxruntime"
    assert stats.calls == (3, 3)
    assert stats.first_seconds and stats.encode_ms and stats.match_ms


def test_an_engine_fits_tasks_that_the_model_takes(exported: Exported) -> None:
    engine = engines.load(exported("ssp"), "onnxruntime")
    task = engine.fit([annotated((90, 120), 1)], name="ellipse")
    assert task.name == "ellipse"
    model("ssp").check_task(task)
    assert engine.predict(annotated((90, 120), 2)[0], task).labels.shape == (90, 120)


def test_loading_reads_nothing_but_the_folder(own_copy: Path) -> None:
    """A folder that was copied elsewhere holds all that there is to know."""
    manifest = json.loads((own_copy / MANIFEST).read_text())
    assert not any("/" in str(value) for value in manifest["settings"].values())
    found = engines.load(own_copy, "eager").predict(annotated((90, 120), 2)[0], fitted("ssp"))
    assert found.labels.shape == (90, 120)


SIGNALLED = """
import faulthandler, gc, os, signal, sys
from fastfss import engines

faulthandler.enable()  # gives the main thread a signal stack, which OpenVINO replaces
first, second = (engines.load(sys.argv[1], "openvino") for _ in range(2))
del first
gc.collect()
del second
gc.collect()
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGUSR1)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="signal stacks of Linux")
def test_a_signal_is_handled_after_engines_of_openvino_ended(exported: Exported) -> None:
    """In a process of its own, which a signal stack in freed memory ends."""
    pytest.importorskip("openvino")
    command = [sys.executable, "-W", "ignore", "-c", SIGNALLED, str(exported("ssp"))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "handled\n"
