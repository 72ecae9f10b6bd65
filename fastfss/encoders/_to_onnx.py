"""Whether modules are being exported to ONNX, for those whose operator there has no twin here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_to_onnx = False


@contextmanager
def to_onnx() -> Iterator[None]:
    """Within it, a module may take operators of ONNX alone."""
    global _to_onnx
    before, _to_onnx = _to_onnx, True
    try:
        yield
    finally:
        _to_onnx = before


def is_to_onnx() -> bool:
    """Whether operators of ONNX may be taken."""
    return _to_onnx
