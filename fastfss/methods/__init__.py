"""The methods."""

from __future__ import annotations

from fastfss.methods.base import FewShotSegmenter, Prediction
from fastfss.methods.canet import CANet
from fastfss.methods.info import MethodInfo, PublishedScore
from fastfss.methods.mlc import MLC
from fastfss.methods.panet import PANet, PANetOutput
from fastfss.methods.pgnet import PGNet
from fastfss.methods.registry import create_model, list_models, model_info
from fastfss.methods.self_support import SelfSupportConfig
from fastfss.methods.ssp import SSP, SSPOutput

__all__ = [
    "MLC",
    "SSP",
    "CANet",
    "FewShotSegmenter",
    "MethodInfo",
    "PANet",
    "PANetOutput",
    "PGNet",
    "Prediction",
    "PublishedScore",
    "SSPOutput",
    "SelfSupportConfig",
    "create_model",
    "list_models",
    "model_info",
]
