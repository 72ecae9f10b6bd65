"""`export_engine`: whole and checked, or nothing."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
import torch

from fastfss import create_model, engines
from fastfss.engines import EngineError, Manifest
from fastfss.engines.examples import ExportSettings
from fastfss.engines.export import export_engine
from fastfss.engines.manifest import ENCODE, MANIFEST, MATCH, WEIGHTS
from fastfss.methods import FewShotSegmenter
from tests.engines.conftest import Exported
from tests.engines.small import SMALL, export, model

SETTINGS = SMALL["panet"].settings()


def tiny() -> FewShotSegmenter:
    torch.manual_seed(0)
    return create_model("panet", encoder="resnet18", layers=("layer1",), size=32)


def names(folder: Path) -> set[str]:
    return {one.name for one in folder.iterdir()}


def test_a_folder_holds_graphs_weights_and_manifest(exported: Exported) -> None:
    folder = exported("ssp")
    assert names(folder) >= {ENCODE, MATCH, WEIGHTS, MANIFEST}
    manifest = Manifest.read(folder)
    assert manifest.check.images == 3
    assert manifest.check.encode < 1e-4 and manifest.check.match < 1e-4
    assert manifest.check.agreement > 99.9
    assert 1 < manifest.check.foreground < 99, "the check's masks hold both labels"
    assert torch.__version__.startswith(manifest.versions["torch"])


def test_a_report_tells_of_the_check_and_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    network = tiny()
    told: list[str] = []
    export_engine(network, tmp_path / "out", ExportSettings((32, 32)), report=told.append)
    assert told[0].startswith("self-check in ONNX Runtime, 3 images: encode ")
    assert not network.training
    assert all(one.requires_grad for one in network.parameters())


def test_a_graph_that_computes_something_else_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx

    from fastfss.engines.export import _saved

    def spoilt(path: Path, graph: onnx.ModelProto) -> object:
        if path.name == ENCODE:
            constant = next(one for one in graph.graph.initializer if len(one.dims) == 4)
            values = onnx.numpy_helper.to_array(constant) * 1.01
            constant.CopyFrom(onnx.numpy_helper.from_array(values, constant.name))
        return _saved(path, graph)

    monkeypatch.setattr("fastfss.engines.export._saved", spoilt)
    with pytest.raises(EngineError, match="self-check: the graphs differ from eager PyTorch"):
        export_engine(tiny(), tmp_path / "out", ExportSettings((32, 32)))
    assert names(tmp_path) == set()


def test_an_operator_that_engines_lack_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = {"11": frozenset({"Conv", "Relu"})}
    monkeypatch.setattr("fastfss.engines.operators.ALLOWED", without)
    with pytest.raises(EngineError, match="encode: expected operators that TensorRT 11 takes"):
        export_engine(tiny(), tmp_path / "out", ExportSettings((32, 32)))
    assert names(tmp_path) == set()


def test_a_method_whose_course_depends_on_values_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = model("panet")

    def curious(self: FewShotSegmenter, images: torch.Tensor) -> dict[str, torch.Tensor]:
        features = self.features(images)
        return {"features": features if float(features.sum()) > 0 else -features}

    monkeypatch.setattr(type(network), "maps", curious)
    with pytest.raises(NotImplementedError, match="no EncodeGraph of this method"):
        export("panet", tmp_path / "out")
    assert names(tmp_path) == set()


@pytest.mark.slow
def test_options_that_were_not_told_are_found_out(tmp_path: Path) -> None:
    network = create_model(
        "guided-late", encoder="resnet18", layers=("layer1",), average="annotated", shared=False
    )
    settings = ExportSettings((64, 64), options={"average": "annotated"})
    with pytest.raises((EngineError, ValueError)):
        export_engine(network, tmp_path / "out", settings, report=lambda _: None)
    assert names(tmp_path) == set()


def test_a_folder_that_is_there_is_kept_unless_overwritten(own_copy: Path) -> None:
    before = (own_copy / MANIFEST).read_bytes()
    with pytest.raises(FileExistsError, match="--overwrite replaces an engine folder"):
        export("panet", own_copy)
    assert (own_copy / MANIFEST).read_bytes() == before
    settings = ExportSettings((32, 32))
    export_engine(tiny(), own_copy, settings, overwrite=True, report=lambda _: None)
    assert Manifest.read(own_copy).method == "panet"
    assert names(own_copy.parent) == {own_copy.name}


def test_a_folder_of_something_else_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="no engine folder; it is left as it is"):
        export_engine(model("panet"), tmp_path, SETTINGS, overwrite=True)
    assert names(tmp_path) == {"thesis.txt"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": (0, 64)}, "size: expected height and width in pixels"),
        ({"shots": 0}, "shots: expected at least 1, got 0"),
        ({"ways": 0}, "ways: expected at least 1, got 0"),
        ({"precision": "fp8"}, "precision: expected one of fp32, fp16, bf16, int8, got 'fp8'"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SMALL["panet"].settings(**settings)


def test_sizes_that_a_method_does_not_take_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="size: expected a square"):
        export("pfenet", tmp_path / "out", size=(65, 97))
    with pytest.raises(ValueError, match="size: expected a square"):
        export("pfenet", tmp_path / "out", dynamic=True)
    with pytest.raises(ValueError, match="calibration: expected images like those to come"):
        export("panet", tmp_path / "out", precision="int8")


def write_at_once(out: Path, barrier: multiprocessing.Barrier, results: object) -> None:  # type: ignore[valid-type]
    network = tiny()
    barrier.wait()  # type: ignore[attr-defined]
    try:
        export_engine(network, out, ExportSettings((32, 32)), report=lambda _: None)
        results.put("written")  # type: ignore[attr-defined]
    except FileExistsError:
        results.put("there")  # type: ignore[attr-defined]


@pytest.mark.slow
def test_of_two_processes_one_writes_and_the_folder_is_whole(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    arguments = (tmp_path / "out", barrier, results)
    both = [context.Process(target=write_at_once, args=arguments) for _ in range(2)]
    for one in both:
        one.start()
    outcomes = sorted(results.get(timeout=300) for _ in both)
    for one in both:
        one.join(60)
    assert outcomes == ["there", "written"]
    assert names(tmp_path) == {"out"}
    assert engines.load(tmp_path / "out", "onnxruntime").warm_up(1).calls == (1, 1)
