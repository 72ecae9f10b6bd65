"""Where the development data lies that is not part of the project."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_BESIDE_THE_CHECKOUT = Path(__file__).parents[2] / "shared"


def shared(name: str) -> Path:
    """A file or folder of the shared data; the calling test is skipped where it is absent."""
    path = Path(os.environ.get("FASTFSS_SHARED") or _BESIDE_THE_CHECKOUT) / name
    if not path.exists():
        pytest.skip(f"no {path}; FASTFSS_SHARED names the folder of the shared data")
    return path
