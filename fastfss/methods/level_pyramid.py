"""What the methods share that correlate all maps of a frozen backbone: HSNet and IMR-HSNet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from fastfss.encoders import Encoder
from fastfss.errors import expected
from fastfss.methods.stacked import StackedSegmenter
from fastfss.task import Task

# On a CPU shots of large grids gain nothing by being together, and what the allocator does not keep
# between calls costs page faults: 5 shots of HSNet in bfloat16 take 825 ms with 256 MiB, 769 one by
# one.
_CPU_MIB = 64

Fusion = Literal["vote", "mean"]
STRIDES = (8, 16, 32)


class LevelPyramid(StackedSegmenter):
    """A method on the maps at strides 8, 16 and 32, whose shots are segmented one by one.

    Attributes:
        levels: the names of the maps at each of STRIDES.
        fusion: how the shots' logits are put together.
        memory_mib: how much memory the correlations that are made together may take.
    """

    def __init__(
        self,
        encoder: Encoder,
        layers: Sequence[str] | None,
        size: int | None,
        fusion: Fusion,
        memory_mib: int,
    ) -> None:
        if layers is None:
            layers = [one.name for one in encoder.features if one.stride in STRIDES]
        super().__init__(encoder, layers, size)
        if fusion not in ("vote", "mean"):
            raise expected("fusion", "one of vote, mean", repr(fusion))
        if memory_mib < 1:
            raise expected("memory_mib", "at least 1", str(memory_mib))
        self.fusion, self.memory_mib = fusion, memory_mib
        strides = [encoder.info(layer).stride for layer in self.layers]
        if sorted(set(strides)) != list(STRIDES):
            wanted = f"maps at strides 8, 16 and 32 of {encoder.name}"
            raise expected("layers", wanted, ", ".join(map(str, strides)))
        self.levels = tuple(
            tuple(n for n, s in zip(self.layers, strides, strict=True) if s == stride)
            for stride in STRIDES
        )
        encoder.requires_grad_(False)

    @property
    def map_names(self) -> Sequence[str]:
        """See StackedSegmenter."""
        return self.layers

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        """The maps of all layers, without gradient: the backbone is never trained."""
        with torch.no_grad():
            maps: dict[str, Tensor] = self.encoder(images, self.layers)
        return maps

    def support_maps(
        self, tasks: Sequence[Task], maps: Mapping[str, Tensor], others: Sequence[str]
    ) -> dict[str, Tensor]:
        """The tensors (B, K, ...) of all tasks' shots in a row, for a query of B images.

        Args:
            tasks: one a way.
            maps: the query's, by layer.
            others: what else is taken from the tasks.

        Raises:
            ValueError: if a task lacks a layer or holds it with other channels.
        """
        batch = maps[self.layers[0]].shape[0]
        for name in self.layers:
            for task in tasks:
                channels = maps[name].shape[1]
                if name not in task.tensors or task.tensors[name].shape[2] != channels:
                    came = ", ".join(f"{k} {tuple(v.shape)}" for k, v in task.tensors.items())
                    raise expected("task", f"a map (B, K, {channels}, h, w) of {name}", came)
        dtype = maps[self.layers[0]].dtype
        ways = [
            {
                name: task.tensors[name].to(dtype).expand(batch, *task.tensors[name].shape[1:])
                for name in (*self.layers, *others)
            }
            for task in tasks
        ]
        if len(ways) == 1:  # not copied
            return ways[0]
        return {name: torch.cat([way[name] for way in ways], dim=1) for name in ways[0]}

    def repeated(self, maps: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
        """Each item of maps (B, ...) `count` times in a row: (B count, ...).

        Of one item on a CPU not copied: 20 MB a shot of HSNet's, in bfloat16.
        """
        return {
            name: one.repeat_interleave(count, dim=0)
            if one.is_cuda or len(one) > 1
            else one.expand(count, *one.shape[1:])
            for name, one in maps.items()
        }

    def together(self, shot_bytes: int, *, on_cpu: bool) -> int:
        """How many shots are segmented together that have so many bytes of correlations each."""
        budget = min(self.memory_mib, _CPU_MIB) if on_cpu else self.memory_mib
        return max(1, (budget << 20) // max(1, shot_bytes))

    def correlation_bytes(
        self,
        query: Mapping[str, Tensor],  # (B, C, h, w)
        support: Mapping[str, Tensor],  # (B, K, C, h, w)
    ) -> int:
        """The size of all correlations of one shot with a batch of queries."""
        pairs = sum(
            query[name][0, 0].numel() * support[name][0, 0, 0].numel() for name in self.layers
        )
        first = query[self.layers[0]]
        return pairs * first.shape[0] * first.element_size()

    def fused(self, shots: Tensor) -> Tensor:
        """One pair of logits (B, 2, H, W) of those of K shots (B, K, 2, H, W).

        Votes are given as the pair (just below 1/2, votes over the most votes in the image).
        """
        count = shots.shape[1]
        if count == 1:
            return shots[:, 0]
        if self.fusion == "mean":
            return shots.mean(dim=1)
        votes = (shots[:, :, 1] > shots[:, :, 0]).sum(dim=1).to(shots.dtype)
        share = votes / votes.amax(dim=(1, 2), keepdim=True).clamp_min(1)
        # Half of the most votes is enough; the shares next to 1/2 are 1 / (2 K) away.
        return torch.stack([torch.full_like(share, 0.5 - 1 / (8 * count)), share], dim=1)
