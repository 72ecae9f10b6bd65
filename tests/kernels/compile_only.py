"""Compiles what a launch would run, for a GPU that is not there: nothing is executed."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from fastfss.kernels import _launch

# Bytes of shared memory that one program may have.
SHARED_MEMORY = {80: 163 << 10, 90: 227 << 10}
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Compiled:
    """One kernel as compiled for its arguments."""

    name: str
    ptx: str
    shared: int
    registers: int
    spilled: int  # bytes of the stack
    warps: int

    @property
    def wide_copies(self) -> bool:
        """Whether global memory reaches shared memory 16 bytes at a time."""
        return "cp.async.cg.shared.global" in self.ptx

    @property
    def tensor_cores(self) -> bool:
        """Whether it multiplies by Hopper's warpgroup instructions, or those before it."""
        return "wgmma.mma_async" in self.ptx or "mma.sync" in self.ptx


class _Driver:
    """Answers what the compiler asks of a GPU's driver."""

    def __init__(self, capability: int) -> None:
        self.capability = capability
        self.utils = self

    def get_current_device(self) -> int:
        return -self.capability  # no real one: kernels are cached by device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": SHARED_MEMORY[self.capability], "multiprocessor_count": 132}


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers a thread, bytes on the stack."""
    with NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(TOOLS / "cuobjdump"), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    assert found, text
    return int(found[1]), int(found[2])


@contextmanager
def _instead_of_launching(capability: int, found: list[Compiled]) -> Iterator[None]:
    run, multiprocessors, active = JITFunction.run, _launch.multiprocessors, driver._active

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        registers, stack = _resources(kernel.asm["cubin"])
        found.append(
            Compiled(
                kernel.metadata.name,
                kernel.asm["ptx"],
                kernel.metadata.shared,
                registers,
                stack,
                kernel.metadata.num_warps,
            )
        )
        return kernel

    driver.set_active(_Driver(capability))
    JITFunction.run = compile_only
    _launch.multiprocessors = lambda device: 132  # type: ignore[assignment]
    try:
        yield
    finally:
        JITFunction.run, _launch.multiprocessors, driver._active = run, multiprocessors, active


def compiled(launch: Callable[[], Any], capability: int) -> list[Compiled]:
    """The kernels that `launch` would run on a GPU of the capability, in order."""
    found: list[Compiled] = []
    with _instead_of_launching(capability, found), torch.no_grad():
        launch()
    return found
