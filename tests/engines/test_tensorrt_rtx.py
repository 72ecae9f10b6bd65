"""What TensorRT for RTX does that TensorRT does not, on the fake: see test_tensorrt.py."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
from pathlib import Path

import pytest
import torch

from fastfss import engines
from fastfss.engines import EngineError, Manifest
from fastfss.engines.tensorrt import BuildOptions, TensorRTForRTXEngine, build_ahead
from fastfss.engines.tensorrt.device import Device
from fastfss.engines.tensorrt.library import TENSORRT_RTX
from fastfss.engines.tensorrt.plans import PlanStore
from tests.engines.conftest import Exported
from tests.engines.fake_gpu import FakeDevice, State
from tests.engines.small import assert_same_mask, fitted, photographs

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*random weights.*:UserWarning"),
    pytest.mark.parametrize("fake", ["rtx"], indirect=True),
]
CPU = torch.device("cpu")


def loaded(folder: Path, **options: object) -> TensorRTForRTXEngine:
    manifest = Manifest.read(folder)
    return TensorRTForRTXEngine(folder, manifest, CPU, options=BuildOptions(**options))  # type: ignore[arg-type]


def files(folder: Path, ending: str) -> list[str]:
    return sorted(one.name for one in (folder / "tensorrt-rtx").glob(f"*.{ending}"))


def test_kernels_are_compiled_when_it_loads_and_kept(fake: State, own_copy: Path) -> None:
    engine = loaded(own_copy)
    assert fake.compiled == 2 and len(files(own_copy, "kernels")) == 2
    engine.warm_up(2)
    assert fake.compiled == 2
    again = loaded(own_copy)
    assert fake.count("kernels taken") == 2
    again.warm_up(1)
    assert fake.compiled == 2 and fake.count("build") == 2


def test_a_plan_serves_gpus_of_other_kinds_which_compile_for_themselves(
    fake: State, own_copy: Path
) -> None:
    loaded(own_copy)
    fake.gpu, fake.capability = "Fake 5000", "12.0"
    engine = loaded(own_copy)
    assert fake.count("build") == 2
    assert "encode: plan from " in engine.notes
    assert fake.compiled == 4 and len(files(own_copy, "kernels")) == 4
    fake.gpu, fake.capability = "Fake 100", "8.9"
    loaded(own_copy)
    assert fake.compiled == 4


def test_kernels_that_it_refuses_are_compiled_anew_and_notes_say_so(
    fake: State, own_copy: Path
) -> None:
    """As after a change that the file's name does not know of."""
    loaded(own_copy)
    store = PlanStore(own_copy / "tensorrt-rtx")
    for path in store.folder.glob("*.kernels"):
        found = store.read(path)
        assert found is not None
        store.write(path, {}, "", found[0].replace(b"Fake 100", b"Fake 099"))
    engine = loaded(own_copy)
    assert "encode: its kernels were of another GPU or driver: compiled" in engine.notes
    engine.warm_up(1)
    assert fake.compiled == 4
    assert "of another GPU" not in loaded(own_copy).notes


def test_damaged_kernels_are_compiled_anew(fake: State, own_copy: Path) -> None:
    loaded(own_copy)
    for path in (own_copy / "tensorrt-rtx").glob("*.kernels"):
        path.write_bytes(path.read_bytes()[:-3])
    loaded(own_copy)
    assert fake.compiled == 4 and fake.count("build") == 2
    loaded(own_copy)
    assert fake.compiled == 4


def test_it_captures_by_itself_unless_that_is_switched_off(fake: State, own_copy: Path) -> None:
    engine = loaded(own_copy)
    engine.warm_up(1)
    assert fake.count("own graph") == 4 and fake.count("capture") == 0
    assert "CUDA graph" not in engine.notes
    fake.calls.clear()
    engine = loaded(own_copy, cuda_graphs=False)
    engine.warm_up(1)
    assert fake.count("own graph") == fake.count("capture") == 0
    assert "encode: no CUDA graph: CUDA graphs are switched off" in engine.notes


def test_plans_built_ahead_are_those_that_load_finds(fake: State, own_copy: Path) -> None:
    built = list(build_ahead(own_copy))
    assert [(one.graph, one.capability) for one in built] == [
        ("encode", "8.0 and later"),
        ("match", "8.0 and later"),
    ]
    assert files(own_copy, "plan") == sorted(one.path.name for one in built)
    assert "deserialize" not in fake.calls and "context" not in fake.calls, "there is no GPU"
    task, eager = fitted("ssp"), engines.load(own_copy, "eager")
    engine = engines.load(own_copy, "tensorrt-rtx")
    assert fake.count("build") == 2
    for photo in photographs():
        assert_same_mask(engine.predict(photo, task), eager.model.predict(photo, task))


def test_a_gpu_takes_the_plan_of_its_own_capability_before_that_of_all(
    fake: State, own_copy: Path
) -> None:
    every = {one.path.name for one in build_ahead(own_copy)}
    own = {one.path.name for one in build_ahead(own_copy, capabilities=["8.9"])}
    other = {one.path.name for one in build_ahead(own_copy, capabilities=["12.0"])}
    assert len(every | own | other) == 6
    assert all(name in loaded(own_copy).notes for name in own)
    fake.capability = "8.6"
    assert all(name in loaded(own_copy).notes for name in every)
    assert fake.count("build") == 6


def test_a_dynamic_folder_is_built_ahead_and_new_sizes_are_compiled_once(
    fake: State, exported: Exported, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(exported("panet", dynamic=True), tmp_path / "engine"))
    options = BuildOptions(sizes=((64, 64), (96, 128), (128, 160)))
    list(build_ahead(folder, options=options))
    engine = loaded(folder, sizes=options.sizes)
    assert fake.count("build") == 2 and fake.compiled == 2
    task = fitted("panet")
    for _ in range(2):
        for size in ((64, 64), (96, 128), (72, 96)):
            engine.segment(torch.zeros(1, 3, *size), task)
    assert fake.compiled == 2 * 3 * 2, "of each size some at once, and more when it comes again"
    again = loaded(folder, sizes=options.sizes)
    again.segment(torch.zeros(1, 3, 72, 96), task)
    assert fake.compiled == 12, "each size's kernels were kept"


def test_kernels_that_come_later_are_kept_too(
    fake: State, exported: Exported, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(exported("panet", dynamic=True), tmp_path / "engine"))
    sizes = ((64, 64), (64, 64), (128, 160))
    engine, task, image = loaded(folder, sizes=sizes), fitted("panet"), torch.zeros(1, 3, 64, 64)
    for _ in range(20):
        engine.segment(image, task)
    assert fake.compiled == 4
    again = loaded(folder, sizes=sizes)
    again.segment(image, task)
    again.segment(image, task)
    assert fake.compiled == 4


@pytest.mark.parametrize("capability", ["9.0", "7.5", "8.7", "nonsense"])
def test_a_capability_that_it_does_not_build_for_is_refused(
    capability: str, fake: State, own_copy: Path
) -> None:
    wanted = r"capability: expected one of 8\.0, 8\.6, 8\.9, 12\.0, 12\.1, got " + capability
    with pytest.raises(ValueError, match=wanted):
        list(build_ahead(own_copy, capabilities=["8.9", capability]))
    assert not files(own_copy, "plan")


@pytest.mark.parametrize(
    ("capability", "reason"),
    [
        ("7.5", "TensorRT for RTX has no float32 matrix product for Turing"),
        (
            "9.0",
            "TensorRT for RTX 1.7.1.116 runs on GPUs of compute capability 8.0, 8.6, .*not 9.0",
        ),
        ("8.9", None),
        ("12.0", None),
    ],
)
def test_gpus_that_it_does_not_know_are_told(
    capability: str, reason: str | None, fake: State, own_copy: Path
) -> None:
    fake.capability = capability
    if reason is None:
        assert engines.load(own_copy, "tensorrt-rtx").name == "tensorrt-rtx"
        return
    with pytest.raises(NotImplementedError, match=reason):
        engines.load(own_copy, "tensorrt-rtx")


def test_plans_of_it_are_not_refitted(fake: State, own_copy: Path) -> None:
    with pytest.raises(
        NotImplementedError, match="refittable: TensorRT for RTX builds in a second"
    ):
        loaded(own_copy, refittable=True)


def test_a_build_ahead_that_fails_says_why_and_keeps_nothing(fake: State, own_copy: Path) -> None:
    fake.refuse = {"build"}
    with pytest.raises(EngineError, match=r"encode\.onnx: TensorRT for RTX cannot build it: build"):
        list(build_ahead(own_copy))
    assert not files(own_copy, "plan")


def test_a_folder_that_cannot_be_written_is_told(fake: State, own_copy: Path) -> None:
    (own_copy / "tensorrt-rtx").write_text("in the way")
    with pytest.raises(OSError, match=r"tensorrt-rtx: cannot be written"):
        list(build_ahead(own_copy))


def test_missing_wheels_name_the_extra(
    fake: State, own_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    missing = r'tensorrt-rtx is not installed: pip install "fastfss\[tensorrt-rtx\]"'
    with pytest.raises(NotImplementedError, match=missing):
        list(build_ahead(own_copy))
    with pytest.raises(NotImplementedError, match=missing):
        engines.load(own_copy, "tensorrt-rtx")


def test_bindings_without_their_libraries_name_the_extra(
    fake: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_name: str) -> object:
        raise ImportError("libtensorrt_rtx.so.1: cannot open shared object file")

    monkeypatch.setattr(importlib, "import_module", broken)
    reason = TENSORRT_RTX.missing()
    monkeypatch.undo()
    assert reason is not None
    assert "does not load (libtensorrt_rtx.so.1: cannot open" in reason
    assert reason.endswith('pip install "fastfss[tensorrt-rtx]"')


def test_without_a_gpu_it_says_so(
    fake: State, own_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert FakeDevice.why_not(CPU) is None
    monkeypatch.setattr("fastfss.engines.tensorrt.engine.Device", Device)
    with pytest.raises(NotImplementedError, match="runs on an NVIDIA GPU"):
        engines.load(own_copy, "tensorrt-rtx")
