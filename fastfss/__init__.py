"""fastfss: few-shot segmentation, the published methods under one API.

Examples:
    >>> import fastfss
    >>> "ssp" in fastfss.list_models()
    True
"""

from __future__ import annotations

from fastfss.annotation import Annotation
from fastfss.encoders import create_encoder, list_encoders
from fastfss.methods import (
    AMP,
    DCAMA,
    MLC,
    SSP,
    CANet,
    CueFusion,
    DENet,
    GuidedEarly,
    GuidedLate,
    HSNet,
    IMRHSNet,
    LabelPropagation,
    PANet,
    PFENet,
    PGNet,
    PPNet,
    create_model,
    list_models,
    model_info,
)
from fastfss.result import Result
from fastfss.task import Task
from fastfss.text import Label, LabelNotFoundError, load_clip

__version__ = "0.1.0"

__all__ = [
    "AMP",
    "DCAMA",
    "MLC",
    "SSP",
    "Annotation",
    "CANet",
    "CueFusion",
    "DENet",
    "GuidedEarly",
    "GuidedLate",
    "HSNet",
    "IMRHSNet",
    "Label",
    "LabelNotFoundError",
    "LabelPropagation",
    "PANet",
    "PFENet",
    "PGNet",
    "PPNet",
    "Result",
    "Task",
    "create_encoder",
    "create_model",
    "list_encoders",
    "list_models",
    "load_clip",
    "model_info",
]
