"""TensorRT's builder, plans, runner and engine, end to end on a fake that computes on the CPU."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from fastfss import engines
from fastfss.engines import EngineError, Manifest
from fastfss.engines.loading import BACKENDS
from fastfss.engines.manifest import ENCODE, MATCH
from fastfss.engines.meanwhile import MeanwhileEngine
from fastfss.engines.tensorrt import BuildOptions, TensorRTEngine, TensorRTForRTXEngine
from fastfss.engines.tensorrt import building as building_module
from fastfss.engines.tensorrt.device import Device
from fastfss.engines.tensorrt.library import TENSORRT
from fastfss.engines.tensorrt.plans import PlanStore, structure_digest
from fastfss.engines.verify import verify
from tests.engines.conftest import Exported
from tests.engines.fake_gpu import FakeDevice, State
from tests.engines.small import assert_same_mask, fitted, photographs

pytestmark = pytest.mark.filterwarnings("ignore:.*random weights.*:UserWarning")
CPU = torch.device("cpu")
ENGINES = {"tensorrt": TensorRTEngine, "tensorrt-rtx": TensorRTForRTXEngine}
every_library = pytest.mark.parametrize("fake", ["10", "11", "rtx"], indirect=True)
both_libraries = pytest.mark.parametrize("fake", ["11", "rtx"], indirect=True)


def loaded(folder: Path, **options: object) -> TensorRTEngine:
    """By the library that is faked."""
    kind, manifest = ENGINES[FakeDevice.state.backend], Manifest.read(folder)
    return kind(folder, manifest, CPU, options=BuildOptions(**options))  # type: ignore[arg-type]


def plans(folder: Path) -> list[Path]:
    return sorted((folder / FakeDevice.state.backend).glob("*.plan"))


@every_library
def test_masks_are_the_models(fake: State, own_copy: Path) -> None:
    engine = engines.load(own_copy, fake.backend)
    task = fitted("ssp")
    eager = engines.load(own_copy, "eager")
    for photo in photographs():
        assert_same_mask(engine.predict(photo, task), eager.model.predict(photo, task))
    assert fake.count("build") == 2
    assert engine.exact


@both_libraries
@pytest.mark.parametrize("method", ["panet", "guided-late"])
def test_other_methods_run(method: str, fake: State, exported: Exported, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported(method), tmp_path / "engine"))
    (found,) = verify(folder, backends=[fake.backend])
    assert found.passed and found.iou >= 0.999
    assert max(found.encode, found.match) < 1e-4


@both_libraries
def test_a_second_load_builds_nothing(fake: State, own_copy: Path) -> None:
    first = engines.load(own_copy, fake.backend)
    assert isinstance(first, TensorRTEngine)
    assert "encode: built in" in first.notes and "match: built in" in first.notes
    assert len(plans(own_copy)) == 2
    again = loaded(own_copy)
    assert fake.count("build") == 2
    assert f"encode: plan from {plans(own_copy)[0].name}" in again.notes
    assert not list((own_copy / "tensorrt").glob("*tmp"))


@pytest.mark.parametrize("change", ["gpu", "version", "level", "graph"])
def test_what_a_plan_depends_on_builds_another(change: str, fake: State, own_copy: Path) -> None:
    loaded(own_copy)
    options: dict[str, object] = {}
    if change == "gpu":
        fake.gpu = "Fake 200"
    elif change == "version":
        TENSORRT.bindings().__version__ = fake.version = "11.5.0.1"  # type: ignore[attr-defined]
    elif change == "level":
        options["level"] = 5
    else:
        spoil_name(own_copy)
    loaded(own_copy, **options)
    assert fake.count("build") == (3 if change == "graph" else 4)


def spoil_name(folder: Path) -> None:
    """Another encode.onnx, as another export would write it."""
    model = onnx.load(str(folder / ENCODE))
    model.producer_name = "another export"
    onnx.save(model, str(folder / ENCODE))
    about = json.loads((folder / "manifest.json").read_text())
    from fastfss.engines.manifest import file_digest

    about["encode"]["sha256"] = file_digest(folder / ENCODE)
    (folder / "manifest.json").write_text(json.dumps(about))


@both_libraries
@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "no json"])
def test_a_damaged_plan_is_built_again(damage: str, fake: State, own_copy: Path) -> None:
    loaded(own_copy)
    path = plans(own_copy)[0]
    content = path.read_bytes()
    flipped = content[:-1] + bytes([content[-1] ^ 1])
    new = {"truncated": content[:-9], "flipped": flipped, "empty": b"", "no json": b"{\n" + content}
    path.write_bytes(new[damage])
    engine = loaded(own_copy)
    assert fake.count("build") == 3
    assert engine.predict(photographs()[0], fitted("ssp")).labels.shape == (90, 120)
    assert path.read_bytes() == content


@both_libraries
def test_a_plan_that_does_not_load_is_built_again_and_says_so(fake: State, own_copy: Path) -> None:
    """As after a change that the key does not know of."""
    loaded(own_copy)
    store = PlanStore(own_copy / fake.backend)
    path = plans(own_copy)[0]
    found = store.read(path)
    assert found is not None
    other = found[0].replace(fake.version.encode(), b"0.9")
    store.write(path, {}, found[1], other)
    engine = loaded(own_copy)
    assert "does not load (the plan is of another version or GPU)" in engine.notes
    assert fake.count("build") == 3


@both_libraries
def test_a_plan_of_another_graph_is_refused(fake: State, own_copy: Path) -> None:
    loaded(own_copy)
    store = PlanStore(own_copy / fake.backend)
    encode, match = plans(own_copy)
    held = store.read(encode)
    assert held is not None
    manifest = Manifest.read(own_copy)
    store.write(match, {}, manifest.match.sha256, held[0])
    with pytest.raises(EngineError, match=r"match\.onnx: the plan is of another graph"):
        loaded(own_copy)


@both_libraries
@pytest.mark.parametrize(
    ("call", "reason"),
    [
        ("parse", r"encode\.onnx: TensorRT.* cannot parse it: node 3 \(Conv node_3\): an operator"),
        ("build", r"encode\.onnx: TensorRT.* cannot build it: build was told to fail"),
        ("deserialize", r"encode\.onnx: its own plan does not load: deserialize was told to fail"),
        ("context", r"encode\.onnx: TensorRT.* makes no context"),
    ],
)
def test_failures_carry_tensorrts_reason(
    call: str, reason: str, fake: State, own_copy: Path
) -> None:
    fake.refuse = {call}
    with pytest.raises(EngineError, match=reason):
        loaded(own_copy)
    if call != "context":
        assert not plans(own_copy), "nothing is kept of a build that failed"


@both_libraries
@pytest.mark.parametrize("call", ["set_input_shape", "set_tensor_address", "execute"])
def test_failures_of_a_run_are_errors(call: str, fake: State, own_copy: Path) -> None:
    loaded(own_copy)
    engine = loaded(own_copy)
    fake.refuse = {call}
    with pytest.raises(EngineError, match=r"encode\.onnx: TensorRT.* refuses"):
        engine.encode(torch.zeros(1, 3, 65, 97))


def test_the_calls_come_in_tensorrts_order(fake: State, own_copy: Path) -> None:
    engine = loaded(own_copy)
    built = ["parse", "build", "deserialize"]
    assert fake.calls == [*built, *built, "context", "context"]
    fake.calls.clear()
    engine.encode(torch.zeros(1, 3, 65, 97))
    addresses = 1 + len(engine.manifest.maps)
    assert fake.calls == [
        "set_input_shape",
        *["set_tensor_address"] * addresses,
        "execute",
        "synchronize",
        "capture",
        "execute",
    ]
    fake.calls.clear()
    engine.encode(torch.ones(1, 3, 65, 97))
    assert fake.calls == ["replay", "execute"]


def test_a_run_that_cannot_be_captured_goes_on_without_and_says_why(
    fake: State, own_copy: Path
) -> None:
    fake.no_capture = "operation not permitted when stream is capturing"
    engine = loaded(own_copy)
    task = fitted("ssp")
    eager = engines.load(own_copy, "eager")
    for photo in photographs():
        assert_same_mask(engine.predict(photo, task), eager.model.predict(photo, task))
    assert fake.count("capture") == 2, "tried once a graph"
    assert fake.count("replay") == 0
    reason = "it cannot be captured: operation not permitted when stream is capturing"
    assert f"encode: no CUDA graph: {reason}" in engine.notes
    assert f"match: no CUDA graph: {reason}" in engine.notes


def test_cuda_graphs_can_be_switched_off(fake: State, own_copy: Path) -> None:
    engine = loaded(own_copy, cuda_graphs=False)
    engine.warm_up(3)
    assert fake.count("capture") == 0
    assert fake.count("execute") == 6
    assert "encode: no CUDA graph: CUDA graphs are switched off" in engine.notes


@both_libraries
def test_results_are_where_the_last_ones_were(fake: State, own_copy: Path) -> None:
    engine = loaded(own_copy)
    first = engine.encode(torch.zeros(1, 3, 65, 97)).maps["features"]
    before = first.clone()
    second = engine.encode(torch.ones(1, 3, 65, 97)).maps["features"]
    assert second.data_ptr() == first.data_ptr() and second.data_ptr() % 256 == 0
    assert not torch.equal(second, before)


def about(path: Path) -> dict[str, object]:
    """What the fake builder was told."""
    found = PlanStore(path.parent).read(path)
    assert found is not None
    told: dict[str, object] = json.loads(found[0].split(b"\n")[1])
    return told


@both_libraries
def test_float32_is_float32_and_options_arrive(fake: State, own_copy: Path) -> None:
    loaded(own_copy, level=5, workspace_mib=64)
    for path in plans(own_copy):
        told = about(path)
        assert told["flags"] == [], "TF32 is on by default, and off here"
        assert told["level"] == 5
        assert told["limits"] == {"WORKSPACE": 64 << 20}


@both_libraries
def test_a_low_precision_may_use_tf32_in_the_encoder_alone(
    fake: State, exported: Exported, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(exported("panet"), tmp_path / "engine"))
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text.replace('"fp32"', '"fp16"'))
    loaded(folder)
    encode, match = plans(folder)
    assert about(encode)["flags"] == ["TF32"]
    assert about(match)["flags"] == []


@both_libraries
def test_the_scratch_memory_is_shared(
    fake: State, own_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[int, ...]] = []
    empty = FakeDevice.empty

    def counted(self: FakeDevice, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        if dtype == torch.uint8:
            made.append(tuple(shape))
        return empty(self, shape, dtype)

    monkeypatch.setattr(FakeDevice, "empty", counted)
    engine = loaded(own_copy)
    assert made == [(fake.scratch,)]
    engine.warm_up(1)
    fake.scratch = 0
    loaded(own_copy).warm_up(1)


def test_timings_are_kept_by_gpu_and_those_of_others_refused(fake: State, own_copy: Path) -> None:
    loaded(own_copy)
    (kept,) = (own_copy / "tensorrt").glob("timings-*.cache")
    assert kept.read_bytes() == b"timings Fake 100"
    kept.write_bytes(b"timings of a GPU that is gone")
    loaded(own_copy, level=4)
    assert "timings refused" in fake.calls
    assert kept.read_bytes() == b"timings Fake 100"


@both_libraries
def test_a_folder_that_cannot_be_written_builds_each_time(
    fake: State, own_copy: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    options = {"plans": tmp_path / "file" / "plans"}
    for _ in range(2):
        engine = loaded(own_copy, **options)
        assert "not kept:" in engine.notes and "is read-only" in engine.notes
    assert fake.count("build") == 4
    engine.warm_up(1)


@both_libraries
def test_two_that_want_the_same_plan_build_it_once(
    fake: State, own_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads here, but each opens the lock for itself, as processes do."""
    build = building_module.build

    def slow(*arguments: object, **options: object) -> object:
        time.sleep(0.3)
        return build(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(building_module, "build", slow)
    failures: list[Exception] = []

    def load() -> None:
        try:
            loaded(own_copy)
        except Exception as error:
            failures.append(error)

    both = [threading.Thread(target=load) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert not failures
    assert fake.count("build") == 2


def reweighted(folder: Path, out: Path) -> Path:
    """Another export of the same structure: all weights of the encoder a little larger."""
    shutil.copytree(folder, out, ignore=shutil.ignore_patterns("tensorrt"))
    model = onnx.load(str(out / ENCODE))
    for one in model.graph.initializer:
        if one.data_type == onnx.TensorProto.FLOAT and one.dims:
            values = onnx.numpy_helper.to_array(one) * np.float32(1.05)
            one.CopyFrom(onnx.numpy_helper.from_array(values, one.name))
    onnx.save(model, str(out / ENCODE))
    from fastfss.engines.manifest import file_digest

    about = json.loads((out / "manifest.json").read_text())
    about["encode"]["sha256"] = file_digest(out / ENCODE)
    (out / "manifest.json").write_text(json.dumps(about))
    return out


def test_a_refittable_plan_takes_the_weights_of_another_export(
    fake: State, own_copy: Path, tmp_path: Path
) -> None:
    shared = {"plans": tmp_path / "plans", "refittable": True}
    image = torch.rand(1, 3, 65, 97)
    first = loaded(own_copy, **shared).encode(image).maps["features"].clone()
    other = reweighted(own_copy, tmp_path / "other")
    engine = loaded(other, **shared)
    assert fake.count("build") == 2, "nothing is built for other weights"
    assert "encode: refitted to the weights of this export" in engine.notes
    found = engine.encode(image).maps["features"].clone()
    wanted = engines.load(other, "onnxruntime").encode(image).maps["features"]
    torch.testing.assert_close(found, wanted)
    assert not torch.allclose(found, first)


def test_a_refit_that_fails_carries_the_reason(fake: State, own_copy: Path, tmp_path: Path) -> None:
    shared = {"plans": tmp_path / "plans", "refittable": True}
    loaded(own_copy, **shared)
    other = reweighted(own_copy, tmp_path / "other")
    fake.refuse = {"refit"}
    with pytest.raises(EngineError, match="cannot refit the plan: refit was told to fail"):
        loaded(other, **shared)


def test_structures_differ_in_more_than_weights(own_copy: Path, exported: Exported) -> None:
    other = reweighted(own_copy, own_copy.parent / "other")
    assert structure_digest(own_copy / ENCODE) == structure_digest(other / ENCODE)
    digests = {
        structure_digest(folder / graph)
        for folder in (own_copy, exported("panet"))
        for graph in (ENCODE, MATCH)
    }
    assert len(digests) == 4


@both_libraries
def test_a_dynamic_engine_has_profiles_of_images_and_maps(
    fake: State, exported: Exported, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(exported("panet", dynamic=True), tmp_path / "engine"))
    engine = loaded(folder, sizes=((64, 64), (96, 128), (128, 160)))
    encode, match = plans(folder)
    assert about(encode)["profile"] == {
        "images": [[1, 3, 64, 64], [1, 3, 96, 128], [1, 3, 128, 160]]
    }
    maps = [[1, 128, 8, 8], [1, 128, 12, 16], [1, 128, 16, 20]]
    assert about(match)["profile"] == {"features": maps}
    task = fitted("panet")
    eager = engines.load(folder, "eager")
    for size in ((64, 64), (96, 160), (96, 160), (72, 96)):
        image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
        wanted = eager.model.segment(image, task).logits
        torch.testing.assert_close(engine.segment(image, task).logits, wanted, rtol=1e-4, atol=1e-4)
    no_graph = "a CUDA graph has one size, and this engine's is free" in engine.notes
    assert no_graph == (fake.backend == "tensorrt"), "that for RTX captures each size by itself"
    with pytest.raises(EngineError, match=r"shape \(1, 3, 256, 64\) of images"):
        engine.encode(torch.zeros(1, 3, 256, 64))


@both_libraries
def test_auto_takes_it_once_it_is_built(
    fake: State, own_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engines.load(own_copy)
    assert re.search(rf"not {fake.backend}: it [^;]* a minute[^;]*; load it by name", engine.why)
    assert fake.count("build") == 0
    engines.load(own_copy, fake.backend)
    again = engines.load(own_copy)
    assert f"{fake.backend} " in again.why and f"not {fake.backend}:" not in again.why
    assert fake.count("build") == 2


@both_libraries
def test_eager_serves_while_plans_are_built(
    fake: State, own_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()
    build = building_module.build

    def held(*arguments: object, **options: object) -> object:
        assert go.wait(60)
        return build(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(building_module, "build", held)
    engine = engines.load(own_copy, fake.backend, wait=False)
    assert isinstance(engine, MeanwhileEngine)
    task, photo = fitted("ssp"), photographs()[0]
    assert engine.name == "eager"
    assert engine.notes == f"{fake.backend} is being made; eager serves meanwhile"
    first = engine.predict(photo, task)
    assert not engine.wait(0.01)
    go.set()
    assert engine.wait(60)
    assert engine.name == fake.backend and "match: built in" in engine.notes
    assert_same_mask(engine.predict(photo, task), first)
    assert isinstance(engines.load(own_copy, fake.backend, wait=False), TensorRTEngine)


@both_libraries
def test_eager_goes_on_where_nothing_is_built(fake: State, own_copy: Path) -> None:
    fake.refuse = {"build"}
    engine = engines.load(own_copy, fake.backend, wait=False)
    assert isinstance(engine, MeanwhileEngine) and engine.wait(60)
    assert engine.name == "eager"
    assert f"{fake.backend} could not be made, eager goes on" in engine.notes
    assert "build was told to fail" in engine.notes
    assert engine.predict(photographs()[0], fitted("ssp")).labels.shape == (90, 120)


@both_libraries
def test_progress_is_told(fake: State, own_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastfss.engines.tensorrt.messages._EVERY", -1.0)
    told: list[str] = []
    ENGINES[fake.backend](own_copy, Manifest.read(own_copy), CPU, report=told.append)
    assert re.match("TensorRT(?: for RTX)? builds encode.onnx", told[0])
    assert "Building: 1 of 2" in told
    assert not any("Timing" in line for line in told), "the outermost phases alone"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": 6}, "level: expected 0 to 5, got 6"),
        ({"workspace_mib": 0}, "workspace_mib: expected at least 1, got 0"),
        ({"sizes": ((64, 64), (32, 64), (96, 96))}, "sizes: expected three sizes from small"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BuildOptions(**options)  # type: ignore[arg-type]


def test_without_a_gpu_or_the_library_it_says_so(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = Manifest.read(exported("ssp"))
    assert "tensorrt" in BACKENDS
    reason = TensorRTEngine.why_not(manifest, CPU)
    assert reason is not None and "runs on an NVIDIA GPU" in reason
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    reason = TensorRTEngine.why_not(manifest, torch.device("cuda"))
    assert reason == 'tensorrt is not installed: pip install "fastfss[tensorrt]"'


@pytest.mark.gpu
def test_the_real_device_waits_in_both_directions_and_captures() -> None:
    """Device without TensorRT: torch's own kernels stand for a run."""
    device = Device(torch.device("cuda"))
    held = device.empty((1000,), torch.float32)
    assert held.data_ptr() % 256 == 0
    assert set(device.about()) == {"gpu", "capability", "driver"}
    source = torch.ones(1000, device="cuda")

    def work(stream: int) -> None:
        assert stream == torch.cuda.current_stream().cuda_stream
        held.add_(1)

    with device.turn() as stream:
        held.copy_(source, non_blocking=True)
        work(stream)
        device.synchronize()
        replay = device.capture(work)
        replay()
    assert float(held.sum()) == 3000

    def spoilt(_stream: int) -> None:
        held.sum().item()  # waits, which a capture does not allow

    with pytest.raises(RuntimeError), device.turn():
        device.capture(spoilt)
    with device.turn() as stream:
        work(stream)
    assert float(held.sum()) == 4000
