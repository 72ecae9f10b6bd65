"""The processes of a run: one, or those that torchrun started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from fastfss.errors import expected


@dataclass(frozen=True)
class Processes:
    """This process among those of the run.

    Attributes:
        rank, count: its number, and how many there are.
        device: what it computes on.
    """

    rank: int
    count: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, in the order of their ranks."""
        if self.count == 1:
            return [value]
        gathered: list[Any] = [None] * self.count
        dist.all_gather_object(gathered, value)
        return gathered

    def wait(self) -> None:
        """Return when all processes have come here."""
        if self.count > 1:
            dist.barrier()

    def share_buffers(self, module: nn.Module) -> None:
        """Give all processes the first one's buffers; each has batch statistics of its own."""
        if self.count > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, src=0)


@contextmanager
def processes(device: str = "auto") -> Iterator[Processes]:
    """Join the group that torchrun started, if it did, and leave it at the end.

    Args:
        device: "auto", "cpu" or "cuda"; "auto" takes a GPU where there is one for every process.

    Raises:
        ValueError: another device, or "cuda" without a GPU for this process.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise expected("device", "auto, cpu or cuda", repr(device))
    rank, count = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    local_count = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if device == "cuda" and local >= gpus:
        raise expected("device", f"a GPU for process {local}", f"{gpus} GPUs")
    on_gpu = device == "cuda" or (device == "auto" and gpus >= local_count)
    chosen = torch.device("cuda", local) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(chosen)
    started = count > 1 and not dist.is_initialized()
    if started:
        dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield Processes(rank, count, chosen)
    finally:
        if started:
            dist.destroy_process_group()
