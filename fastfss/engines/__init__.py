"""Engines: a method as two exported graphs, run by whatever is fastest."""

from __future__ import annotations

from fastfss.engines.base import Engine, EngineStats, model_of
from fastfss.engines.encoding import ENCODER_BACKENDS, accelerate
from fastfss.engines.loading import list_backends, load
from fastfss.engines.manifest import (
    Check,
    Cost,
    EngineError,
    GraphSpec,
    Manifest,
    Output,
    Precision,
    Preprocessing,
    TensorSpec,
)

__all__ = [
    "ENCODER_BACKENDS",
    "Check",
    "Cost",
    "Engine",
    "EngineError",
    "EngineStats",
    "GraphSpec",
    "Manifest",
    "Output",
    "Precision",
    "Preprocessing",
    "TensorSpec",
    "accelerate",
    "list_backends",
    "load",
    "model_of",
]
