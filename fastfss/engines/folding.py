"""Constants computed when a graph is exported instead of at every call."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx

_ANY = 1 << 30


def folded(model: onnx.ModelProto) -> onnx.ModelProto:
    """A graph whose convolutions have kernels that are constants, where they can be.

    torch's own pass leaves large weights that a method slices, and whatever is split.
    """
    optimizer = import_module("onnxscript.optimizer")
    _fold_splits(model.graph)
    found: onnx.ModelProto = optimizer.optimize(
        model, input_size_limit=_ANY, output_size_limit=_ANY
    )
    return found


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
