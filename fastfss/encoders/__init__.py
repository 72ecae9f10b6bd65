"""Encoders: backbones that return named feature maps, and their weights."""

from __future__ import annotations

from fastfss.encoders.base import Encoder, FeatureInfo, Normalization
from fastfss.encoders.registry import create_encoder, list_encoders, load_encoder

__all__ = [
    "Encoder",
    "FeatureInfo",
    "Normalization",
    "create_encoder",
    "list_encoders",
    "load_encoder",
]
