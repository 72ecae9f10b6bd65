"""Checkpoints: reading, strict loading, saving, and the published key names."""

from __future__ import annotations

from fastfss.errors import CheckpointError
from fastfss.weights.checkpoint import read_checkpoint, read_metadata, save_checkpoint
from fastfss.weights.keys import (
    ENCODER_KEYS,
    FLAT_STEM_KEYS,
    MLC_KEYS,
    SSP_KEYS,
    KeyMap,
    convert_keys,
    deep_stem_keys,
)
from fastfss.weights.loading import load_into
from fastfss.weights.packaged import packaged_weights

__all__ = [
    "ENCODER_KEYS",
    "FLAT_STEM_KEYS",
    "MLC_KEYS",
    "SSP_KEYS",
    "CheckpointError",
    "KeyMap",
    "convert_keys",
    "deep_stem_keys",
    "load_into",
    "packaged_weights",
    "read_checkpoint",
    "read_metadata",
    "save_checkpoint",
]
