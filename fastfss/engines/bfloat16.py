"""A bfloat16 graph as float32 that is rounded after every node: what any runtime can compute."""

from __future__ import annotations

from pathlib import Path


def imitated(path: Path) -> bytes:
    """A graph of bfloat16 tensors with float32 in their place, each rounded to bfloat16.

    ONNX Runtime computes no bfloat16 convolution on the CPU, but it does round. Sums are in
    float32, as in hardware.

    Args:
        path: of the graph.

    Returns:
        The model's bytes.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    def is_low(dtype: int) -> bool:
        return dtype == TensorProto.BFLOAT16

    model = onnx.load(str(path))
    graph = model.graph
    low = {one.name for one in graph.value_info if is_low(one.type.tensor_type.elem_type)}
    for constant in graph.initializer:
        if is_low(constant.data_type):
            values = numpy_helper.to_array(constant).astype("float32")
            constant.CopyFrom(numpy_helper.from_array(values, constant.name))
    inferred = onnx.shape_inference.infer_shapes(onnx.load(str(path)), data_prop=True)
    low |= {one.name for one in inferred.graph.value_info if is_low(one.type.tensor_type.elem_type)}
    nodes = []
    for node in graph.node:
        nodes.append(node)
        for index, name in enumerate(node.output):
            if name not in low:
                continue
            exact, rounded = f"{name}.exact", f"{name}.rounded"
            node.output[index] = exact
            nodes.append(helper.make_node("Cast", [exact], [rounded], to=TensorProto.BFLOAT16))
            nodes.append(helper.make_node("Cast", [rounded], [name], to=TensorProto.FLOAT))
        if node.op_type == "Cast" and is_low(node.attribute[0].i):
            node.attribute[0].i = TensorProto.FLOAT
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]
    found: bytes = model.SerializeToString()
    return found
