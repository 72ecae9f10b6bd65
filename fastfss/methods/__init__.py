"""The methods."""

from __future__ import annotations

from fastfss.methods.amp import AMP
from fastfss.methods.base import FewShotSegmenter
from fastfss.methods.canet import CANet
from fastfss.methods.class_rows import ClassLogits
from fastfss.methods.cue_fusion import CueFusion
from fastfss.methods.dcama import DCAMA
from fastfss.methods.denet import DENet
from fastfss.methods.fcn32s import FCN32s
from fastfss.methods.features import Features
from fastfss.methods.guided import GuidedLate, GuidedSegmenter
from fastfss.methods.guided_early import GuidedEarly
from fastfss.methods.guided_networks import GUIDED_NETWORKS, PublishedNetwork, published_state
from fastfss.methods.hsnet import HSNet
from fastfss.methods.imr_hsnet import IMRHSNet, IMROutput
from fastfss.methods.info import MethodInfo, PublishedScore
from fastfss.methods.interactive import InteractiveEarly, InteractiveLate
from fastfss.methods.latent_classes import LatentClasses, MiningConfig
from fastfss.methods.latent_graph import GraphConfig, Unlabelled
from fastfss.methods.mlc import MLC, MLCOutput
from fastfss.methods.named_models import NAMED_MODELS, NamedModel
from fastfss.methods.panet import PANet, PANetOutput
from fastfss.methods.parts import PartConfig
from fastfss.methods.pfenet import PFENet, PFENetOutput
from fastfss.methods.pgnet import PGNet
from fastfss.methods.ppnet import PPNet, PPNetOutput
from fastfss.methods.prediction import Prediction
from fastfss.methods.propagation import LabelPropagation, PropagationConfig
from fastfss.methods.rectification import Rectification
from fastfss.methods.registry import create_model, list_models, model_info
from fastfss.methods.self_support import SelfSupportConfig
from fastfss.methods.ssp import SSP, SSPOutput

__all__ = [
    "AMP",
    "DCAMA",
    "GUIDED_NETWORKS",
    "MLC",
    "NAMED_MODELS",
    "SSP",
    "CANet",
    "ClassLogits",
    "CueFusion",
    "DENet",
    "FCN32s",
    "Features",
    "FewShotSegmenter",
    "GraphConfig",
    "GuidedEarly",
    "GuidedLate",
    "GuidedSegmenter",
    "HSNet",
    "IMRHSNet",
    "IMROutput",
    "InteractiveEarly",
    "InteractiveLate",
    "LabelPropagation",
    "LatentClasses",
    "MLCOutput",
    "MethodInfo",
    "MiningConfig",
    "NamedModel",
    "PANet",
    "PANetOutput",
    "PFENet",
    "PFENetOutput",
    "PGNet",
    "PPNet",
    "PPNetOutput",
    "PartConfig",
    "Prediction",
    "PropagationConfig",
    "PublishedNetwork",
    "PublishedScore",
    "Rectification",
    "SSPOutput",
    "SelfSupportConfig",
    "Unlabelled",
    "create_model",
    "list_models",
    "model_info",
    "published_state",
]
