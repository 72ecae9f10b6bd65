"""Constants computed when a graph is exported instead of at every call."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    import onnx

_ANY = 1 << 30


def folded(model: onnx.ModelProto) -> onnx.ModelProto:
    """A graph whose convolutions have kernels that are constants, where they can be.

    torch's own pass leaves large weights that a method slices, and whatever is split.
    """
    from onnx import TensorProto

    optimizer = import_module("onnxscript.optimizer")
    _fold_splits(model.graph)
    low = any(one.data_type == TensorProto.BFLOAT16 for one in _of_convolutions(model.graph))
    found: onnx.ModelProto = optimizer.optimize(
        model, input_size_limit=_ANY, output_size_limit=_ANY
    )
    # What the optimiser makes of a kernel and the batch norm behind it is in float32.
    for one in _of_convolutions(found.graph) if low else ():
        if one.data_type == TensorProto.FLOAT:
            one.CopyFrom(_in_bfloat16(one))
    return found


def _of_convolutions(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    """Kernels and biases that are constants."""
    held = {one.name: one for one in graph.initializer}
    convolutions = (node for node in graph.node if node.op_type in ("Conv", "ConvTranspose"))
    return [held[name] for node in convolutions for name in node.input[1:] if name in held]


def _in_bfloat16(constant: onnx.TensorProto) -> onnx.TensorProto:
    from onnx import TensorProto, numpy_helper

    values = torch.from_numpy(np.array(numpy_helper.to_array(constant)))
    content = values.to(torch.bfloat16).view(torch.int16).numpy().tobytes()
    return TensorProto(
        name=constant.name, dims=constant.dims, data_type=TensorProto.BFLOAT16, raw_data=content
    )


def _fold_splits(graph: onnx.GraphProto) -> None:
    """Weights that are split become weights of their own."""
    from onnx import helper, numpy_helper

    held = {one.name: one for one in graph.initializer}
    splits = [n for n in graph.node if n.op_type == "Split" and set(n.input) <= held.keys()]
    for node in splits:
        attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        axis = attributes.get("axis", 0)
        whole = numpy_helper.to_array(held[node.input[0]])
        if len(node.input) > 1:
            sizes = numpy_helper.to_array(held[node.input[1]])
            parts = np.split(whole, np.cumsum(sizes)[:-1], axis=axis)
        else:  # equal parts, the last one smaller where they do not divide
            side = -(-whole.shape[axis] // len(node.output))
            parts = np.split(whole, range(side, whole.shape[axis], side), axis=axis)
        graph.initializer.extend(
            numpy_helper.from_array(np.ascontiguousarray(part), name)
            for part, name in zip(parts, node.output, strict=True)
        )
        graph.node.remove(node)
