"""How published numbers are computed."""

from __future__ import annotations

from fastfss.protocols.metrics import ConfusionMeter, FoldMeter

__all__ = ["ConfusionMeter", "FoldMeter"]
