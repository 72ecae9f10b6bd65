"""Objects in videos: clicks on one frame, masks in all."""

from __future__ import annotations

from fastfss.allocation import keep_freed_memory
from fastfss.video.limits import Limits
from fastfss.video.log import Event
from fastfss.video.memory import MemoryConfig
from fastfss.video.opening import open
from fastfss.video.results import FrameResult
from fastfss.video.session import VideoSession
from fastfss.video.source import LiveSource, read_stream

__all__ = [
    "Event",
    "FrameResult",
    "Limits",
    "LiveSource",
    "MemoryConfig",
    "VideoSession",
    "keep_freed_memory",
    "open",
    "read_stream",
]
