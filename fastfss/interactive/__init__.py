"""Segmenting images by clicks, strokes, boxes and masks."""

from __future__ import annotations

from fastfss.interactive.annotator import next_click
from fastfss.interactive.refinement import Refinement, get_refinement, grabcut, guided_filter
from fastfss.interactive.session import InteractiveSession

__all__ = [
    "InteractiveSession",
    "Refinement",
    "get_refinement",
    "grabcut",
    "guided_filter",
    "next_click",
]
