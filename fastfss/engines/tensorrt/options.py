"""How TensorRT builds, and what a build is told meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fastfss.errors import expected

Report = Callable[[str], None]
Size = tuple[int, int]
LEVELS = range(6)


@dataclass(frozen=True)
class BuildOptions:
    """How TensorRT builds.

    Attributes:
        level: of the builder's search, 0 to 5; 5 takes minutes longer.
        workspace_mib: what tactics may use; None is all of the GPU's memory.
        refittable: whether a plan takes the weights of another export of the same graphs, in a
            second instead of a build; it is somewhat slower.
        sizes: least, usual and largest image of an engine of free size.
        plans: the folder of plans; None keeps them beside the graphs. Exports that share weights'
            plans by `refittable` share it.
        cuda_graphs: whether calls are captured.
    """

    level: int = 3
    workspace_mib: int | None = None
    refittable: bool = False
    sizes: tuple[Size, Size, Size] = ((128, 128), (480, 640), (1024, 1024))
    plans: Path | None = None
    cuda_graphs: bool = True

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise expected("level", f"{LEVELS.start} to {LEVELS.stop - 1}", str(self.level))
        if self.workspace_mib is not None and self.workspace_mib < 1:
            raise expected("workspace_mib", "at least 1", str(self.workspace_mib))
        least, usual, largest = self.sizes
        for sides in zip(least, usual, largest, strict=True):
            if sides[0] < 1 or list(sides) != sorted(sides):
                raise expected("sizes", "three sizes from small to large", str(self.sizes))
