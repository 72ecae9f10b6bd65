"""Which positions SSP's benchmarks select.

Random weights would select few positions, so both sides are made to select the same: 20 %
foreground and 75 % background, which is assumed of a trained network, and 7 % of the positions
changing between the two passes, which is the median measured on everyday photographs with a frozen
ResNet-18. More change costs ours more and the published form nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import cycle

import torch
from torch import Tensor

GRID = 60  # of a query of 473 px


def selections(device: str | torch.device = "cpu") -> tuple[Tensor, Tensor]:
    """(1, 2, 60, 60) 0/1 of both passes: foreground, background."""
    order = torch.rand(GRID * GRID, generator=torch.Generator().manual_seed(0)).argsort()
    count = GRID * GRID
    passes = []
    for start in (0, round(0.035 * count)):  # what enters at one end leaves at the other
        chosen = torch.zeros(1, 2, count)
        chosen[0, 0, order[: count // 5]] = 1
        chosen[0, 1, order[count // 5 + start : count // 5 + start + 3 * count // 4]] = 1
        passes.append(chosen.view(1, 2, GRID, GRID).to(device))
    return passes[0], passes[1]


@cache
def published_selections(
    device: str | torch.device = "cpu",
) -> list[list[tuple[Tensor, Tensor]]]:
    """The same as the published forms take them: of each pass and item two flat masks."""
    return [[(one[0, 0].flatten() > 0, one[0, 1].flatten() > 0)] for one in selections(device)]


class Forced:
    """Stands in for `fastfss.methods.self_support.select`: the passes in turn, for every query.

    Args:
        device: of the scores.
        own: called for the time that it takes.
    """

    def __init__(
        self,
        device: str | torch.device = "cpu",
        own: Callable[..., object] | None = None,
    ) -> None:
        self._passes = cycle(selections(device))
        self._own = own

    def __call__(self, scores: Tensor, config: object) -> Tensor:
        if self._own is not None:
            self._own(scores, config)
        return next(self._passes).to(scores.dtype).expand(len(scores), -1, -1, -1)
