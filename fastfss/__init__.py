"""fastfss: few-shot segmentation, the published methods under one API."""

from __future__ import annotations

__version__ = "0.1.0"
