"""The program `fastfss` of this checkout, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import fastfss


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "fastfss", *map(str, arguments)]


def environment(**variables: str) -> dict[str, str]:
    """The tests' own fastfss, on one thread."""
    root = str(Path(fastfss.__file__).parents[1])
    return {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", **variables}


def run(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run it to its end; `variables` are added to the environment."""
    return subprocess.run(
        command(*arguments),
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=120,
    )


def start_until(reached: Callable[[], bool], *arguments: object) -> subprocess.Popen[str]:
    """Start it, and return while it runs, as soon as it has come so far."""
    process = subprocess.Popen(
        command(*arguments),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 100
    while process.poll() is None and time.monotonic() < until:
        if reached():
            return process
        time.sleep(0.002)
    process.kill()
    raise AssertionError(f"ended or hung before it was stopped: {process.communicate()}")
