"""The list of operators, and the uses of them that TensorRT does not take."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from fastfss.engines import EngineError
from fastfss.engines.folding import folded
from fastfss.engines.onnx_runtime import session
from fastfss.engines.operators import ALLOWED, check_operators, operator_counts
from tests.engines.conftest import Exported
from tests.engines.test_agreement import methods


def graph(*nodes: onnx.NodeProto, constants: dict[str, list[int]] | None = None) -> onnx.ModelProto:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    held = [
        helper.make_tensor(name, TensorProto.INT64, [len(values)], values)
        for name, values in (constants or {}).items()
    ]
    return helper.make_model(helper.make_graph(list(nodes), "graph", [value], [result], held))


@methods
def test_graphs_hold_operators_of_every_version_alone(method: str, exported: Exported) -> None:
    for name in ("encode", "match"):
        model = onnx.load(str(exported(method) / f"{name}.onnx"))
        counts = check_operators(model, name)
        assert counts == operator_counts(model)
        assert sum(counts.values()) == len(model.graph.node)
        for allowed in ALLOWED.values():
            assert counts.keys() <= allowed
        held = {one.name for one in model.graph.initializer}
        kernels = [node.input[1] for node in model.graph.node if node.op_type == "Conv"]
        assert set(kernels) <= held, "a convolution with a computed kernel leaves the tuned paths"
        for value in (*model.graph.input, *model.graph.output):
            assert all(side.dim_value > 0 for side in value.type.tensor_type.shape.dim)


@pytest.mark.parametrize("operator", ["NonZero", "Compress", "Unique", "If", "Loop", "Col2Im"])
def test_an_operator_outside_the_list_is_named(operator: str) -> None:
    with pytest.raises(EngineError, match=f"match: expected operators .* got {operator}"):
        check_operators(graph(helper.make_node(operator, ["x"], ["y"])), "match")


def test_an_operator_of_another_domain_is_named() -> None:
    node = helper.make_node("FusedConv", ["x"], ["y"], domain="com.microsoft")
    with pytest.raises(EngineError, match=r"com\.microsoft::FusedConv"):
        check_operators(graph(node), "encode")


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        (helper.make_node("Resize", ["x", "", "s"], ["y"], mode="cubic"), "nearest or linear"),
        (helper.make_node("Resize", ["x", "", "s"], ["y"], mode="linear", antialias=1), "antialia"),
        (helper.make_node("TopK", ["x", "k"], ["y", "i"]), "constant k below 3840"),
        (helper.make_node("TopK", ["x", "unknown"], ["y", "i"]), "constant k below 3840"),
        (helper.make_node("ScatterND", ["x", "s", "x"], ["y"], reduction="add"), "reduction"),
        (helper.make_node("MaxPool", ["x"], ["y", "i"], kernel_shape=[2, 2]), "no indices"),
    ],
    ids=["cubic", "antialias", "large k", "k of another node", "scatter-add", "pool indices"],
)
def test_uses_that_tensorrt_does_not_take_are_named(node: onnx.NodeProto, reason: str) -> None:
    with pytest.raises(EngineError, match=reason):
        check_operators(graph(node, constants={"k": [4000]}), "match")


@pytest.mark.parametrize(
    "node",
    [
        helper.make_node("Resize", ["x", "", "s"], ["y"], mode="linear"),
        helper.make_node("TopK", ["x", "few"], ["y", "i"]),
        helper.make_node("ScatterND", ["x", "s", "x"], ["y"]),
        helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2]),
    ],
    ids=["linear", "small k", "scatter", "pool"],
)
def test_plain_uses_pass(node: onnx.NodeProto) -> None:
    check_operators(graph(node, constants={"few": [12]}), "match")


@pytest.mark.parametrize("sizes", [[2, 3], None], ids=["given sizes", "equal parts"])
def test_weights_that_are_split_become_weights(sizes: list[int] | None) -> None:
    kernel = np.arange(2 * 5 * 9, dtype=np.float32).reshape(2, 5, 3, 3)
    constants = [onnx.numpy_helper.from_array(kernel, "w")]
    inputs = ["w"]
    if sizes is not None:
        constants.append(onnx.numpy_helper.from_array(np.array(sizes), "sizes"))
        inputs.append("sizes")
    extra = {} if sizes is not None else {"num_outputs": 2}
    nodes = [
        helper.make_node("Split", inputs, ["a", "b"], axis=1, **extra),
        helper.make_node("Slice", ["x", "start", "stop", "axis"], ["part"]),
        helper.make_node("Conv", ["part", "b" if sizes is not None else "a"], ["y"]),
    ]
    channels = 3
    constants += [
        onnx.numpy_helper.from_array(np.array([value]), name)
        for name, value in (("start", 0), ("stop", channels), ("axis", 1))
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    opsets = [helper.make_opsetid("", 20)]
    made = helper.make_graph(nodes, "graph", [x], [y], constants)
    model = helper.make_model(made, opset_imports=opsets, ir_version=9)
    image = np.random.default_rng(0).standard_normal((1, 4, 8, 8)).astype(np.float32)
    (wanted,) = session(model.SerializeToString()).run(None, {"x": image})
    result = folded(model)
    assert [node.op_type for node in result.graph.node] == ["Slice", "Conv"]
    (found,) = session(result.SerializeToString()).run(None, {"x": image})
    np.testing.assert_array_equal(found, wanted)


def test_kernels_of_bfloat16_stay_so_when_batch_norm_is_folded_into_them() -> None:
    low = TensorProto.BFLOAT16
    rng = np.random.default_rng(0)
    values = {
        "w": rng.standard_normal((4, 3, 3, 3)),
        "b": rng.standard_normal(4),
        **{name: rng.uniform(0.5, 1.5, 4) for name in ("scale", "shift", "mean", "variance")},
    }
    constants = [
        helper.make_tensor(name, low, one.shape, one.ravel().tolist())
        for name, one in values.items()
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"]),
        helper.make_node("BatchNormalization", ["c", "scale", "shift", "mean", "variance"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", low, [1, 3, 8, 8])
    y = helper.make_tensor_value_info("y", low, [1, 4, 6, 6])
    made = helper.make_graph(nodes, "graph", [x], [y], constants)
    opsets = [helper.make_opsetid("", 20)]
    result = folded(helper.make_model(made, opset_imports=opsets, ir_version=9)).graph
    (node,) = result.node
    held = {one.name: one for one in result.initializer}
    assert [held[name].data_type for name in node.input[1:]] == [low, low]
    factor = values["scale"] / np.sqrt(values["variance"] + 1e-5)
    found = onnx.numpy_helper.to_array(held[node.input[1]]).astype(np.float32)
    wanted = values["w"] * factor[:, None, None, None]
    np.testing.assert_allclose(found, wanted, rtol=0.02)
