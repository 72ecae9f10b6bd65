"""The two graphs in TensorRT 10 or 11; docs/tensorrt.md says what has run on hardware."""

from __future__ import annotations

from fastfss.engines.tensorrt.engine import TensorRTEngine
from fastfss.engines.tensorrt.options import BuildOptions

__all__ = ["BuildOptions", "TensorRTEngine"]
