"""What the launchers share: how maps lie in memory, block sizes, the GPU. Loads no Triton."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor


@cache
def interpreted() -> bool:
    """Whether Triton runs its kernels in Python, on CPU tensors: TRITON_INTERPRET=1."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")


@dataclass(frozen=True)
class Config:
    """Block sizes of a kernel; the first of a kernel's list is used, see `choose`.

    Attributes:
        rows: first axis of a program's result.
        columns: second axis.
        depth: how much of the axis that is summed over a step loads.
        warps: num_warps of Triton.
        stages: steps that are loaded ahead.
    """

    rows: int
    columns: int
    depth: int
    warps: int = 4
    stages: int = 3

    def options(self) -> dict[str, int]:
        """Keyword arguments of the launch."""
        return {"num_warps": self.warps, "num_stages": self.stages}


# Small, so that a test of a few positions has several blocks along every axis; 16 is the least
# that tl.dot takes.
INTERPRETED = Config(16, 16, 16, 1, 1)

# What `bench.gpu --tune` puts in place of a kernel's first configuration.
overrides: dict[str, Config] = {}


def choose(kernel: str, configs: Sequence[Config]) -> Config:
    """The configuration to launch with.

    A fixed table instead of triton.autotune: that times every shape at its first call, which
    stalls, cannot be captured in a CUDA graph, and lets the order of sums change between runs.
    """
    if interpreted():
        return INTERPRETED
    return overrides.get(kernel, configs[0])


@cache
def multiprocessors(device: torch.device) -> int:
    """Of the GPU; 4 for the interpreter, so that small tests meet split sums too."""
    if device.type != "cuda":
        return 4
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count


def cdiv(a: int, b: int) -> int:
    """The quotient, rounded up."""
    return -(-a // b)


def power_of_two(count: int, least: int = 1) -> int:
    """The next power of two, not below `least`."""
    return max(least, 1 << (count - 1).bit_length())


def unit(*sizes: int) -> int:
    """The largest power of two up to 16 that divides all of them."""
    return math.gcd(16, *sizes)


@dataclass(frozen=True)
class Maps:
    """(B, C, N) with one of its last two axes contiguous, as the kernels take it.

    Triton loads 16 bytes at a time only where it can prove sizes and strides to be multiples of
    that many elements. Of an integer argument it knows no more than whether 16 divides it, which
    leaves 50 x 50 maps with 2-byte loads. So sizes and strides are handed over in units that the
    kernel multiplies by again: `units` of channels if these are contiguous, else of positions.
    """

    tensor: Tensor
    channel_unit: int
    position_unit: int

    @classmethod
    def of(cls, maps: Tensor) -> Maps:
        """The maps as they are; copied if neither axis is contiguous."""
        batch, channels, positions = maps.shape
        if maps.stride(2) != 1 and positions > 1 and maps.stride(1) != 1 and channels > 1:
            maps = maps.contiguous()
        stride_b = maps.stride(0) if batch > 1 else 0
        if maps.stride(2) == 1 or positions == 1:
            return cls(maps, 1, unit(positions, maps.stride(1) if channels > 1 else 0, stride_b))
        return cls(maps, unit(channels, maps.stride(2), stride_b), 1)

    @property
    def sizes(self) -> tuple[int, int]:
        """Channels and positions, in units."""
        _, channels, positions = self.tensor.shape
        return channels // self.channel_unit, positions // self.position_unit

    @property
    def strides(self) -> tuple[int, int, int]:
        """Of items, channels and positions, in units; contiguous axes have stride 1."""
        batch, channels, positions = self.tensor.shape
        of_item, of_channel, of_position = self.tensor.stride()
        return (
            of_item // (self.channel_unit * self.position_unit) if batch > 1 else 0,
            of_channel // self.position_unit if channels > 1 else 1,
            of_position // self.channel_unit if positions > 1 else 1,
        )

    @property
    def units(self) -> dict[str, int]:
        """The kernel's constants CU and PU."""
        return {"CU": self.channel_unit, "PU": self.position_unit}

    @property
    def channels_last(self) -> bool:
        """Whether a position's channels follow each other, and positions do not."""
        _, channels, positions = self.tensor.shape
        return channels > 1 and positions > 1 and self.tensor.stride(2) != 1


def precision(dtype: torch.dtype) -> str:
    """How tl.dot multiplies float32.

    Three tf32 products keep 21 of float32's 24 bits, at a third of 495 TFLOP/s on Hopper; its
    plain float32 units reach 67. Operands of 16 bits are exact products whatever this says.
    """
    return "tf32x3" if dtype == torch.float32 else "tf32"


def new(like: Tensor, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Uninitialised memory on the same device."""
    return torch.empty(shape, dtype=dtype, device=like.device)


def splits(programs: int, steps: int, device: torch.device, waves: int = 2) -> int:
    """Into how many parts a sum of `steps` is cut to give every multiprocessor `waves` programs."""
    wanted = cdiv(waves * multiprocessors(device), max(programs, 1))
    return max(1, min(wanted, steps))
