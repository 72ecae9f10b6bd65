"""A process's peak of memory, on Linux, and one of its own that takes it."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[1]


def peak() -> float:
    """MiB at most; not ru_maxrss, which a program inherits from the one that started it."""
    with Path("/proc/self/status").open() as status:
        return next(int(s.split()[1]) for s in status if s.startswith("VmHWM")) / 1024


def resting() -> float:
    """MiB in use now, from which on the peak counts anew; freed memory is given back."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak_above(setup: str, call: str, *, timeout: float = 300) -> float:
    """MiB that a call adds to what is in use after its setup, in a process of its own, one thread.

    Args:
        setup: Python, which knows torch. A small call in it loads the libraries and has what they
            keep counted to the start.
        call: Python, in the same scope.
        timeout: seconds for both.

    Raises:
        RuntimeError: the process failed; with what it printed.
    """
    lines = [
        "import torch",
        "from bench.memory import peak, resting",
        "torch.set_num_threads(1)",
        "with torch.inference_mode():",
        textwrap.indent(textwrap.dedent(setup), "    "),
        "    before = resting()",
        textwrap.indent(textwrap.dedent(call), "    "),
        "print(peak() - before)",
    ]
    run = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    if run.returncode:
        raise RuntimeError(f"measuring memory failed:\n{run.stderr}")
    return float(run.stdout)
