"""Encoders in fp16, bf16 and int8, and what they cost."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from fastfss import engines
from fastfss.engines import Manifest
from fastfss.engines.accuracy import CheckClass, class_iou, measured_cost
from fastfss.engines.bfloat16 import imitated
from fastfss.engines.export import export_engine
from fastfss.engines.manifest import ENCODE, MATCH
from fastfss.engines.onnx_runtime import session
from tests.engines.conftest import Exported
from tests.engines.small import SHOTS, SMALL, annotated, fitted, model, photographs, supports

pytestmark = pytest.mark.filterwarnings("ignore:.*random weights.*:UserWarning")


def check_set() -> list[CheckClass]:
    pairs = [annotated((70, 90), seed) for seed in range(SHOTS + 3)]
    return [CheckClass("ellipse", [(image, mask.numpy()) for image, mask in pairs])]


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    folder, told = tmp_path_factory.mktemp("int8") / "engine", []
    settings = SMALL["panet"].settings(precision="int8")
    images = [annotated((80, 100), 30 + seed)[0] for seed in range(4)]
    network = copy.deepcopy(model("panet"))
    for one in network.modules():
        if isinstance(one, nn.BatchNorm2d):
            nn.init.uniform_(one.bias, -0.1, 0.1)  # as training leaves it: convolutions get biases
    export_engine(
        network,
        folder,
        settings,
        calibration=images,
        check_set=check_set(),
        report=told.append,
    )
    return folder, told


def test_int8_is_explicit_symmetric_and_leaves_the_first_convolution(
    int8: tuple[Path, list[str]],
) -> None:
    graph = onnx.load(str(int8[0] / ENCODE)).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("QuantizeLinear") > 4
    assert "QLinearConv" not in kinds
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    made_by = {name: node.op_type for node in graph.node for name in node.output}
    assert made_by.get(convolutions[0].input[1]) != "DequantizeLinear"
    for one in convolutions[1:]:
        assert [made_by.get(name) for name in one.input[:2]] == ["DequantizeLinear"] * 2
        assert len(one.input) == 3, "a bias"
    constants = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    for node in graph.node:
        if node.op_type == "QuantizeLinear":
            assert not constants[node.input[2]].any(), "zero points are 0"
            assert constants[node.input[1]].size == 1, "activations have a scale a tensor"
    weights = [n for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] in constants]
    dtypes = {constants[one.input[0]].dtype for one in weights}
    assert dtypes == {np.dtype(np.int8)}, "TensorRT dequantises no biases of 32 bits"
    per_channel = [one for one in weights if constants[one.input[0]].ndim == 4]
    assert per_channel
    for one in per_channel:
        assert constants[one.input[1]].size == constants[one.input[0]].shape[0]


def test_the_cost_is_printed_and_kept(int8: tuple[Path, list[str]]) -> None:
    folder, told = int8
    cost = Manifest.read(folder).cost
    assert cost is not None
    assert (cost.classes, cost.images) == (1, 3)
    assert cost.points == cost.exact - cost.low
    said = told[-1]
    assert said.startswith("accuracy cost of int8: ") and f"{cost.points:+.2f} points" in said
    assert f"costs {cost.points:+.2f} points" in str(Manifest.read(folder))


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_int8_gives_nearly_the_exact_mask(backend: str, int8: tuple[Path, list[str]]) -> None:
    pytest.importorskip(backend)
    engine, exact = (engines.load(int8[0], one) for one in (backend, "eager"))
    assert not engine.exact and exact.exact
    task = exact.fit(supports())
    for photo in photographs():
        found, wanted = (one.predict(photo, task) for one in (engine, exact))
        assert np.abs(found.scores - wanted.scores).max() > 1e-5, "it is not float32"
        assert (found.labels == wanted.labels).mean() > 0.95


def test_bf16_is_bfloat16_inside_and_float32_outside(exported: Exported) -> None:
    folder = exported("panet", precision="bf16")
    graph = onnx.load(str(folder / ENCODE)).graph
    for one in (*graph.input, *graph.output):
        assert one.type.tensor_type.elem_type == TensorProto.FLOAT
    kinds = {one.data_type for one in graph.initializer if len(one.dims) == 4}
    assert kinds == {TensorProto.BFLOAT16}
    match = onnx.load(str(folder / MATCH)).graph
    assert not any(one.data_type == TensorProto.BFLOAT16 for one in match.initializer)
    manifest = Manifest.read(folder)
    assert 1e-4 < manifest.check.encode < 0.05


def test_openvino_takes_bf16_and_onnxruntime_says_why_not(exported: Exported) -> None:
    folder = exported("panet", precision="bf16")
    with pytest.raises(NotImplementedError, match="no bfloat16 convolution on the CPU"):
        engines.load(folder, "onnxruntime")
    pytest.importorskip("openvino")
    engine, exact = engines.load(folder, "openvino"), engines.load(folder, "eager")
    for photo in photographs():
        found, wanted = (one.predict(photo, fitted("panet")) for one in (engine, exact))
        assert (found.labels == wanted.labels).mean() > 0.95


def test_imitated_bfloat16_rounds_every_result(tmp_path: Path) -> None:
    """x * w and + b, each rounded: computed here by torch in bfloat16."""
    values = np.linspace(0.1, 3, 12, dtype=np.float32)
    constants = [
        helper.make_tensor(name, TensorProto.BFLOAT16, [12], values * scale)
        for name, scale in (("w", 1.37), ("b", 0.011))
    ]
    nodes = [
        helper.make_node("Cast", ["x"], ["low"], to=TensorProto.BFLOAT16),
        helper.make_node("Mul", ["low", "w"], ["product"]),
        helper.make_node("Add", ["product", "b"], ["sum"]),
        helper.make_node("Cast", ["sum"], ["y"], to=TensorProto.FLOAT),
    ]
    sides = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [12]) for name in "xy"]
    graph = helper.make_graph(nodes, "graph", sides[:1], sides[1:], constants)
    opsets = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), tmp_path / "low.onnx")
    x = np.linspace(-2, 2, 12, dtype=np.float32)
    (found,) = session(imitated(tmp_path / "low.onnx")).run(None, {"x": x})
    low, w, b = (
        torch.from_numpy(one).bfloat16()
        for one in (x, values * np.float32(1.37), values * np.float32(0.011))
    )
    np.testing.assert_array_equal(found, (low * w + b).float().numpy())


def test_iou_counts_over_all_queries_and_leaves_255_out(exported: Exported) -> None:
    engine = engines.load(exported("panet"), "eager")
    task = fitted("panet")
    image, _ = annotated((60, 60), 1)
    found = engine.predict(image, task).labels
    assert class_iou(engine, task, [(image, found)]) == 1.0
    unsure = np.full((60, 60), 255, np.uint8)
    unsure[:30] = found[:30]
    assert class_iou(engine, task, [(image, unsure)]) == 1.0
    other = class_iou(engine, task, [(image, 1 - found)])
    assert other == 0.0


def test_a_check_set_needs_queries_and_one_way(exported: Exported) -> None:
    folder = exported("panet")
    few = [CheckClass("cow", check_set()[0].pairs[:SHOTS])]
    with pytest.raises(ValueError, match="expected more than 2 annotated images of 'cow', got 2"):
        measured_cost(folder, Manifest.read(folder), few)
    both = exported("guided-late", ways=2)
    with pytest.raises(ValueError, match="check_set: expected an engine of one way"):
        measured_cost(both, Manifest.read(both), check_set())
