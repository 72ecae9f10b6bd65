"""Run by a freshly installed fastfss: `python smoke.py native|reference`, prints what it did.

The argument is the backend that must serve the operations.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import fastfss
from fastfss.environment import environment


def main(wanted: str) -> None:
    """Import, look at the environment, run an operation by every backend that is on."""
    location = Path(fastfss.__file__)
    assert location.is_relative_to(sys.prefix), f"{location} is not of this environment"
    assert (location.parent / "py.typed").exists()

    found = environment()
    assert found.installed == "wheel", found.installed
    backends = {backend.name: backend for backend in found.backends}
    assert backends["native"].on == (wanted == "native"), backends["native"]
    assert torch.get_num_threads() > 0
    print(f"fastfss {found.fastfss}, native: {backends['native'].detail}")


if __name__ == "__main__":
    main(sys.argv[1])
