"""The ONNX operators that each version of TensorRT takes, and those that our graphs may use.

From the operator table of TensorRT's ONNX parser (10.x) and its change log to 11.x. Left out on
purpose are operators whose output size depends on values (NonZero, Compress, Unique,
NonMaxSuppression): they rule out CUDA graphs; control flow (If, Loop, Scan) likewise; and what the
parser takes with conditions that our graphs do not meet.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from fastfss.engines.manifest import EngineError

if TYPE_CHECKING:
    import onnx

_TENSORRT_10 = """
    Abs Add And ArgMax ArgMin AveragePool BatchNormalization Cast Ceil Clip Concat Constant
    ConstantOfShape Conv ConvTranspose Cos CumSum DequantizeLinear Div Dropout Einsum Elu Equal Erf
    Exp Expand EyeLike Flatten Floor Gather GatherElements GatherND Gelu Gemm GlobalAveragePool
    GlobalMaxPool Greater GreaterOrEqual GridSample GroupNormalization HardSigmoid HardSwish
    Identity InstanceNormalization IsInf IsNaN LayerNormalization LeakyRelu Less LessOrEqual Log
    LogSoftmax MatMul Max MaxPool Mean Min Mod Mul Neg Not OneHot Or PRelu Pad Pow QuantizeLinear
    Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin
    ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize Round ScatterElements ScatterND Selu
    Shape Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt
    Squeeze Sub Sum Tan Tanh Tile TopK Transpose Trilu Unsqueeze Where Xor
"""
ALLOWED: dict[str, frozenset[str]] = {
    version: frozenset(_TENSORRT_10.split()) for version in ("10", "11")
}
_MOST_TOP_K = 3840  # TopK's k is smaller


def operator_counts(model: onnx.ModelProto) -> Counter[str]:
    """How often each operator occurs; those of other domains than ONNX's own as domain::name."""
    nodes = [*model.graph.node, *(node for f in model.functions for node in f.node)]
    return Counter(
        f"{node.domain}::{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
        for node in nodes
    )


def check_operators(model: onnx.ModelProto, name: str) -> Counter[str]:
    """Raise unless every version of TensorRT takes a graph's operators, as far as is documented.

    Args:
        model: the graph.
        name: what to call it.

    Returns:
        The operators' counts.

    Raises:
        EngineError: an operator that is not on a list, or used in a way that is not; it is named.
    """
    found = operator_counts(model)
    for version, allowed in ALLOWED.items():
        if other := sorted(found.keys() - allowed):
            raise EngineError(
                f"{name}: expected operators that TensorRT {version} takes in a graph of fixed "
                f"shapes, got {', '.join(other)}"
            )
    constants = {one.name: one for one in model.graph.initializer}
    for node in model.graph.node:
        if (reason := _why_limited(node, constants)) is not None:
            raise EngineError(f"{name}: node {node.name or node.op_type}: {reason}")
    return found


def _why_limited(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> str | None:
    """The reason why an operator of the list cannot serve as it is used, or None."""
    import onnx

    attributes = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
    if node.op_type == "Resize":
        mode = attributes.get("mode", b"nearest")
        if mode not in (b"nearest", b"linear"):
            return f"expected a Resize of mode nearest or linear, got {mode!r}"
        if attributes.get("antialias", 0):
            return "Resize: TensorRT has no antialiasing"
    if node.op_type == "TopK":
        k = constants.get(node.input[1])
        if k is None or int(onnx.numpy_helper.to_array(k).item()) >= _MOST_TOP_K:
            return f"expected a TopK of a constant k below {_MOST_TOP_K}"
    scatters = node.op_type in ("ScatterND", "ScatterElements")
    if scatters and attributes.get("reduction", b"none") != b"none":
        return f"{node.op_type}: TensorRT takes it without a reduction alone"
    if node.op_type == "MaxPool" and len([name for name in node.output if name]) > 1:
        return "MaxPool: TensorRT gives no indices"
    return None
