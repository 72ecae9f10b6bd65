"""The methods."""

from __future__ import annotations

from fastfss.methods.base import FewShotSegmenter, Prediction
from fastfss.methods.info import MethodInfo, PublishedScore
from fastfss.methods.latent_classes import LatentClasses, MiningConfig
from fastfss.methods.mlc import MLC, MLCOutput
from fastfss.methods.rectification import Rectification
from fastfss.methods.registry import create_model, list_models, model_info
from fastfss.methods.self_support import SelfSupportConfig
from fastfss.methods.ssp import SSP, SSPOutput

__all__ = [
    "MLC",
    "SSP",
    "FewShotSegmenter",
    "LatentClasses",
    "MLCOutput",
    "MethodInfo",
    "MiningConfig",
    "Prediction",
    "PublishedScore",
    "Rectification",
    "SSPOutput",
    "SelfSupportConfig",
    "create_model",
    "list_models",
    "model_info",
]
