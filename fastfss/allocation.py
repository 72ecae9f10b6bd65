"""Memory that is freed and asked for again, frame after frame."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -2, -3, -8
_KEPT = 1 << 30


def keep_freed_memory() -> bool:
    """Let the process keep the memory of tensors that are freed, up to 1 GiB; whether it could.

    By default glibc gives each large tensor's pages back to the system when it is freed, and has
    all of them cleared again for the next one: 142 instead of 61 ms of a core for MobileNetV2 at
    480 x 854. It holds for the whole process, so programs call this, not the library. Only glibc
    has it; elsewhere nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    settings = ((_MMAP_THRESHOLD, _KEPT), (_TRIM_THRESHOLD, _KEPT), (_TOP_PAD, 64 << 20))
    # One arena: memory that one thread freed serves the other.
    return all(mallopt(name, value) == 1 for name, value in (*settings, (_ARENA_MAX, 1)))
