"""The GPU as runners see it: memory, a stream of their own, CUDA graphs.

Tests put another in its place, with memory of the CPU and a stream that is nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

# What TensorRT wants of addresses; torch's allocator gives 512 at the start of an allocation.
ALIGNMENT = 256


class Device:
    """One GPU and a stream.

    Args:
        device: "cuda" or "cuda:1".
    """

    def __init__(self, device: torch.device) -> None:
        self.torch_device = device
        self._stream = torch.cuda.Stream(device)

    @classmethod
    def why_not(cls, device: torch.device) -> str | None:
        """The reason why a device cannot be one, or None."""
        if device.type != "cuda":
            return f"TensorRT runs on an NVIDIA GPU (device='cuda'), not on {device}"
        if not torch.cuda.is_available():
            return "torch sees no NVIDIA GPU"
        return None

    @classmethod
    def capability(cls, device: torch.device) -> str:
        """A GPU's compute capability, such as "8.9"."""
        major, minor = torch.cuda.get_device_capability(device)
        return f"{major}.{minor}"

    def about(self) -> dict[str, str]:
        """What a plan depends on: the GPU's name and compute capability, the driver."""
        found = torch.cuda.get_device_properties(self.torch_device)
        driver = getattr(torch._C, "_cuda_getDriverVersion", lambda: torch.version.cuda)()
        return {
            "gpu": found.name,
            "capability": self.capability(self.torch_device),
            "driver": str(driver),
        }

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Memory that nobody wrote to, aligned."""
        return torch.empty(tuple(shape), dtype=dtype, device=self.torch_device)

    @contextmanager
    def turn(self) -> Iterator[int]:
        """The own stream's handle, after what the current one has to do and before what follows.

        The default stream would make TensorRT synchronise more often.
        """
        current = torch.cuda.current_stream(self.torch_device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            yield self._stream.cuda_stream
        current.wait_stream(self._stream)

    def synchronize(self) -> None:
        """Wait for the own stream."""
        self._stream.synchronize()

    def capture(self, work: Callable[[int], None]) -> Callable[[], None]:
        """Record what `work` launches on the stream that it is given, and return what replays it.

        Raises:
            RuntimeError: it cannot be recorded. The stream, which is spoilt then, is replaced.
        """
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self._stream):
                work(self._stream.cuda_stream)
        except RuntimeError:
            self._stream = torch.cuda.Stream(self.torch_device)
            raise
        return graph.replay
