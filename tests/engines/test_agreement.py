"""Every engine gives the masks that the model gives, for tasks that the model made."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastfss import Task, create_model, engines
from fastfss.engines import onnx_runtime, openvino_runtime
from fastfss.engines.check import label_iou, relative_error
from fastfss.engines.examples import ExportSettings
from fastfss.engines.export import export_engine, to_onnx
from fastfss.methods.named_models import NAMED_MODELS
from fastfss.ops._center_pivot_torch import group_norm4d
from tests.engines.conftest import Exported
from tests.engines.small import (
    SHOTS,
    SMALL,
    annotated,
    assert_same_mask,
    fitted,
    model,
    photographs,
    supports,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*random weights.*:UserWarning")

CPU = ("eager", "onnxruntime", "openvino", "openvino+eager")
# Their exports take a quarter of a minute each.
LONG = ("hsnet", "pfenet")
methods = pytest.mark.parametrize(
    "method",
    [pytest.param(m, marks=pytest.mark.slow) if m in LONG else m for m in SMALL],
)


def needs(backend: str) -> None:
    for library in ("onnxruntime", "openvino"):
        if library in backend:
            pytest.importorskip(library)


@methods
def test_a_saved_task_gives_every_engine_the_models_masks(
    method: str, exported: Exported, tmp_path: Path
) -> None:
    folder = exported(method)
    fitted(method).save(tmp_path / "task.safetensors")
    task = Task.load(tmp_path / "task.safetensors")
    eager = engines.load(folder, "eager").model  # stretches images to the engine's size
    wanted = [eager.predict(photo, task) for photo in photographs()]
    shares = [one.labels.mean() for one in wanted]
    assert min(shares) > 0.02, "masks of one label prove nothing"
    assert max(shares) < 0.98
    for backend in CPU:
        needs(backend)
        engine = engines.load(folder, backend)
        for photo, one in zip(photographs(), wanted, strict=True):
            assert_same_mask(engine.predict(photo, task), one)


@methods
def test_the_graphs_compute_the_models_maps_and_logits(method: str, exported: Exported) -> None:
    folder = exported(method)
    task = fitted(method)
    eager = engines.load(folder, "eager")
    image = eager.prepare(photographs()[0])
    maps = eager.model.encode(image)
    logits = eager.model.segment_from(maps, task).logits
    for backend in CPU[1:]:
        needs(backend)
        engine = engines.load(folder, backend)
        found = engine.encode(image)
        assert found.maps.keys() == maps.maps.keys()
        for name, tensor in maps.maps.items():
            assert relative_error(found.maps[name], tensor) < 1e-4
        # Of eager's own maps: SSP's threshold turns a map's last bit into another position.
        assert relative_error(engine.segment_from(maps, task).logits, logits) < 1e-4


@methods
def test_fewer_shots_serve_where_their_number_divides(method: str, exported: Exported) -> None:
    folder = exported(method)
    task = fitted(method, shots=1)
    eager = engines.load(folder, "eager")
    photo = photographs()[0]
    wanted = eager.model.predict(photo, task)
    for engine in (eager, engines.load(folder, "onnxruntime")):
        assert_same_mask(engine.predict(photo, task), wanted)


def test_two_ways_in_one_pass(exported: Exported) -> None:
    folder = exported("guided-late", ways=2)
    eager = engines.load(folder, "eager")
    image, mask = annotated((80, 80), 9)
    tasks = [
        fitted("guided-late", shots=1, name="one"),
        model("guided-late").fit([(image, 1 - mask)], name="two"),
    ]
    wanted = eager.model.predict(image, tasks)
    assert {1, 2} & set(wanted.labels.ravel())
    for backend in CPU:
        needs(backend)
        found = engines.load(folder, backend).predict(image, tasks)
        assert found.names == ("one", "two")
        assert_same_mask(found, wanted)


def test_a_dynamic_engine_takes_any_size(exported: Exported) -> None:
    folder = exported("panet", dynamic=True)
    task = fitted("panet")
    eager = engines.load(folder, "eager")
    assert eager.manifest.image_size == ("height", "width")
    for backend in CPU:
        needs(backend)
        engine = engines.load(folder, backend)
        for size in ((64, 64), (96, 160), (123, 77)):
            image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
            wanted = eager.model.segment(image, task)
            found = engine.segment(image, task)
            assert found.logits.shape == (1, 2, *size)
            assert relative_error(found.logits, wanted.logits) < 1e-4
    with pytest.raises(NotImplementedError, match="one size"):
        engines.load(folder, "cuda-graph", device="cuda")


@pytest.mark.slow
def test_the_default_model_with_its_own_weights(tmp_path: Path) -> None:
    network = create_model("default", size=160)
    task = network.fit(supports(), name="ellipse")  # by a model of another shape of image
    options = NAMED_MODELS["default"].options
    settings = ExportSettings((128, 160), shots=SHOTS, options=options)
    export_engine(network, tmp_path / "engine", settings, report=lambda _: None)
    eager = engines.load(tmp_path / "engine", "eager")
    assert eager.manifest.check.match < 1e-4
    for backend in CPU:
        needs(backend)
        engine = engines.load(tmp_path / "engine", backend)
        for photo in photographs():
            wanted = eager.model.predict(photo, task)
            assert 0.02 < wanted.labels.mean() < 0.98
            found = engine.predict(photo, task)
            assert_same_mask(found, wanted)
            assert found.presence == pytest.approx(wanted.presence, abs=1e-4)


@pytest.mark.slow
def test_compiled_graphs_agree(exported: Exported) -> None:
    folder = exported("ssp")
    task = fitted("ssp")
    compiled = engines.load(folder, "torch-compile")
    for photo in photographs():
        wanted = engines.load(folder, "eager").predict(photo, task)
        assert_same_mask(compiled.predict(photo, task), wanted)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["eager", "cuda-graph"])
def test_engines_of_the_gpu_agree_with_the_cpu(backend: str, exported: Exported) -> None:
    for method in ("ssp", "panet"):
        folder = exported(method)
        task = fitted(method)
        engine = engines.load(folder, backend, device="cuda")
        for photo in photographs():
            wanted = engines.load(folder, "eager").predict(photo, task)
            found = engine.predict(photo, task)
            labels = torch.from_numpy(found.labels), torch.from_numpy(wanted.labels)
            assert label_iou(*labels) >= 0.99


@torch.no_grad()
def test_norms_of_large_maps_keep_their_digits() -> None:
    """HSNet's finest level has millions of numbers a channel, which engines may add one by one."""

    class Norm(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return group_norm4d(x, torch.ones(4), torch.zeros(4), 2, 1e-5)

    x = torch.rand(1, 4, 36, 36, 24, 24, generator=torch.Generator().manual_seed(0)) + 3
    graph = to_onnx(Norm().eval(), [x], ["x"], ["y"], {}).SerializeToString()
    ones, zeros = torch.ones(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    wanted = group_norm4d(x.double(), ones, zeros, 2, 1e-5)
    request = openvino_runtime.compiled(openvino_runtime.openvino_core(), graph, "f32")
    for found in (
        onnx_runtime.run_by_name(onnx_runtime.session(graph), {"x": x}, ["y"]),
        openvino_runtime.run_by_name(request, {"x": x}, ["y"]),
    ):
        assert (found["y"] - wanted).norm() <= 1e-5 * wanted.norm()
