"""The encode graph in int8: explicit QuantizeLinear and DequantizeLinear, ranges from images."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    import onnx


def quantized(model: onnx.ModelProto, images: Sequence[Tensor]) -> onnx.ModelProto:
    """Quantise a graph's convolutions but the first, and what lies between them.

    Symmetric, as TensorRT wants it: zero points 0, weights per output channel, activations per
    tensor. The first convolution sees pixels and stays as it is.

    Args:
        model: the float32 encode graph.
        images: (1, 3, H, W) each, as the graph takes them.
    """
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """One image at a time."""

        def __init__(self) -> None:
            self._rest: Iterator[Tensor] = iter(images)

        def get_next(self) -> dict[str, Any] | None:
            image = next(self._rest, None)
            return None if image is None else {"images": image.numpy()}

    first = next(node.name for node in model.graph.node if node.op_type == "Conv")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        quantize_static(
            model,
            str(path),
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Add", "MaxPool"],
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=[first],
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                # TensorRT's parser dequantises 8 bits at most, and biases would have 32.
                "QuantizeBias": False,
            },
        )
        found: onnx.ModelProto = onnx.load(str(path))
    return found
