"""The methods."""

from __future__ import annotations

from fastfss.methods.base import FewShotSegmenter, Prediction
from fastfss.methods.canet import CANet
from fastfss.methods.info import MethodInfo, PublishedScore
from fastfss.methods.latent_graph import GraphConfig, Unlabelled
from fastfss.methods.mlc import MLC
from fastfss.methods.panet import PANet, PANetOutput
from fastfss.methods.parts import PartConfig
from fastfss.methods.pgnet import PGNet
from fastfss.methods.ppnet import PPNet, PPNetOutput
from fastfss.methods.registry import create_model, list_models, model_info
from fastfss.methods.self_support import SelfSupportConfig
from fastfss.methods.ssp import SSP, SSPOutput

__all__ = [
    "MLC",
    "SSP",
    "CANet",
    "FewShotSegmenter",
    "GraphConfig",
    "MethodInfo",
    "PANet",
    "PANetOutput",
    "PGNet",
    "PPNet",
    "PPNetOutput",
    "PartConfig",
    "Prediction",
    "PublishedScore",
    "SSPOutput",
    "SelfSupportConfig",
    "Unlabelled",
    "create_model",
    "list_models",
    "model_info",
]
