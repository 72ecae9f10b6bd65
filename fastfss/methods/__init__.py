"""The methods."""

from __future__ import annotations

from fastfss.methods.base import FewShotSegmenter, Prediction
from fastfss.methods.info import MethodInfo, PublishedScore
from fastfss.methods.mlc import MLC
from fastfss.methods.pfenet import PFENet, PFENetOutput
from fastfss.methods.registry import create_model, list_models, model_info
from fastfss.methods.self_support import SelfSupportConfig
from fastfss.methods.ssp import SSP, SSPOutput

__all__ = [
    "MLC",
    "SSP",
    "FewShotSegmenter",
    "MethodInfo",
    "PFENet",
    "PFENetOutput",
    "Prediction",
    "PublishedScore",
    "SSPOutput",
    "SelfSupportConfig",
    "create_model",
    "list_models",
    "model_info",
]
