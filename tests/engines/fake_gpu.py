"""A GPU in the CPU's memory, and what tests set and read of the fake library on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

ALIGNMENT = 256


@dataclass
class State:
    """What a test sets and reads.

    Attributes:
        calls: of everything, in order.
        backend: whose library it is.
        gpu: the GPU's name.
        capability: its compute capability.
        version: of TensorRT.
        compiled: kernels that TensorRT for RTX compiled, and did not find in its cache.
        refuse: names of calls that fail.
        scratch: bytes that each engine wants.
        capturing: whether the stream is being recorded.
        no_capture: why a run cannot be recorded, or None.
    """

    calls: list[str] = field(default_factory=list)
    backend: str = "tensorrt"
    gpu: str = "Fake 100"
    capability: str = "8.9"
    version: str = "11.4.0.106"
    compiled: int = 0
    refuse: set[str] = field(default_factory=set)
    scratch: int = 4096
    capturing: bool = False
    no_capture: str | None = None

    def called(self, name: str) -> bool:
        """Record a call; whether it succeeds."""
        self.calls.append(name)
        return name not in self.refuse

    def count(self, name: str) -> int:
        return self.calls.count(name)


class FakeDevice:
    """In the place of `fastfss.engines.tensorrt.device.Device`."""

    state: State

    def __init__(self, device: torch.device) -> None:
        self.torch_device = torch.device("cpu")

    @classmethod
    def why_not(cls, device: torch.device) -> str | None:
        return None

    @classmethod
    def capability(cls, device: torch.device) -> str:
        return cls.state.capability

    def about(self) -> dict[str, str]:
        return {"gpu": self.state.gpu, "capability": self.state.capability, "driver": "13000"}

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Aligned memory, poisoned with NaN."""
        count = int(np.prod(shape))
        size = torch.empty((), dtype=dtype).element_size()
        bytes_ = torch.full((count * size + ALIGNMENT,), 255, dtype=torch.uint8)
        start = -bytes_.data_ptr() % ALIGNMENT
        return bytes_[start : start + count * size].view(dtype).view(tuple(shape))

    @contextmanager
    def turn(self) -> Iterator[int]:
        yield 7

    def synchronize(self) -> None:
        self.state.called("synchronize")

    def capture(self, work: Callable[[int], None]) -> Callable[[], None]:
        self.state.called("capture")
        if self.state.no_capture is not None:
            raise RuntimeError(self.state.no_capture)
        self.state.capturing = True
        try:
            work(7)
        finally:
            self.state.capturing = False

        def replay() -> None:
            self.state.called("replay")
            work(7)

        return replay
