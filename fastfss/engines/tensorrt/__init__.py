"""The two graphs in TensorRT and TensorRT for RTX; docs/tensorrt.md says what has been run."""

from __future__ import annotations

from fastfss.engines.tensorrt.building import Ahead, build_ahead
from fastfss.engines.tensorrt.engine import TensorRTEngine, TensorRTForRTXEngine
from fastfss.engines.tensorrt.options import BuildOptions

__all__ = ["Ahead", "BuildOptions", "TensorRTEngine", "TensorRTForRTXEngine", "build_ahead"]
