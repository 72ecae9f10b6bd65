"""The weights that come with the package."""

from __future__ import annotations

import hashlib
from pathlib import Path

from fastfss.errors import CheckpointError

FOLDER = Path(__file__).parent / "files"
# SHA-256 of each file.
PACKAGED = {
    "default.safetensors": "e5478ce3b56842f2d5075259fe073469fc72d183588d192d130fc1cb1eef4258",
}


def packaged_weights(name: str) -> Path:
    """A file of the package.

    Raises:
        CheckpointError: it is missing, which a broken installation alone explains.
    """
    path = FOLDER / name
    if not path.is_file():
        raise CheckpointError(f"{path}: missing; fastfss carries it: install it again")
    return path


def digest_of(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
