"""Training episodes of encoded views: few shots, clicks, and priors."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastfss.data.masks import IGNORED
from fastfss.errors import import_extra
from fastfss.training.default_weights.views import LABEL_SIDE, WHOLE, Views

SHARES = {"coco": 0.25, "clothing": 0.2, "davis": 0.15, "caltech": 0.32, "region": 0.08}
MARK_WIDTH = 5.0  # of a click's disk, in pixels of the labels


@dataclass(frozen=True, eq=False)
class Batch:
    """B episodes of K shots.

    Attributes:
        shots: K of the encoder's maps, (B, C, h, w) each.
        shot_masks: K of (B, 160, 160) of {0, 1, 255}.
        query: the encoder's maps.
        query_mask: (B, 160, 160) of {0, 1, 255}.
        hints: (B, 3, 160, 160), see CueFusion.segment_from.
        present: (B,) bool, whether the class is in the query.
    """

    shots: list[dict[str, Tensor]]
    shot_masks: list[Tensor]
    query: dict[str, Tensor]
    query_mask: Tensor
    hints: Tensor
    present: Tensor


class Episodes:
    """Draws episodes of views.

    Args:
        views: all of them.
        allowed: numbers of the views that training may see.
        held_out: classes that it must not ask for.
        seed: of the draws.
    """

    def __init__(
        self, views: Views, allowed: Sequence[int], held_out: frozenset[str], seed: int
    ) -> None:
        self.views = views
        self.rng = random.Random(f"episodes {seed}")
        self.members: dict[str, list[tuple[int, int]]] = {}  # class -> (view, label)
        for number in allowed:
            for label, name in views.views[number].things.items():
                if name not in held_out:
                    self.members.setdefault(name, []).append((number, label))
        self.members = {name: found for name, found in self.members.items() if len(found) > 1}
        self.by_set = {
            kind: [name for name in self.members if name.startswith(f"{kind}/")] for kind in SHARES
        }
        self.allowed = list(allowed)

    def few_shot(self, batch: int, *, absent: float = 0.15, prior: float = 0.25) -> Batch:
        """Episodes of other images' masks."""
        shots = self.rng.choice((1, 1, 1, 2, 3, 5))
        chosen: list[list[tuple[int, int]]] = []
        present = []
        for _ in range(batch):
            name = self._class()
            here = self.rng.random() >= absent
            drawn = self._apart(name, shots + here)
            if not here:
                drawn.append((self._without(name), -1))
            chosen.append(drawn)
            present.append(here)
        masks = [[self.mask(*drawn[place]) for drawn in chosen] for place in range(shots + 1)]
        hints = torch.zeros(batch, 3, LABEL_SIDE, LABEL_SIDE)
        for place in range(batch):
            if present[place] and self.rng.random() < prior:
                hints[place, 0] = self.prior(masks[-1][place])
        return Batch(
            shots=[self.maps([drawn[place][0] for drawn in chosen]) for place in range(shots)],
            shot_masks=[torch.stack(one) for one in masks[:-1]],
            query=self.maps([drawn[-1][0] for drawn in chosen]),
            query_mask=torch.stack(masks[-1]),
            hints=hints,
            present=torch.tensor(present),
        )

    def clicked(self, batch: int) -> Batch:
        """Episodes whose only support is the query itself, with a first click on the object."""
        chosen = [self.rng.choice(self.members[self._class()]) for _ in range(batch)]
        query = self.maps([view for view, _ in chosen])
        mask = torch.stack([self.mask(*one) for one in chosen])
        shot_mask = torch.full_like(mask, IGNORED)
        hints = torch.zeros(batch, 3, LABEL_SIDE, LABEL_SIDE)
        made = Batch([query], [shot_mask], query, mask, hints, torch.ones(batch, dtype=torch.bool))
        nothing = torch.full((batch, LABEL_SIDE, LABEL_SIDE), -1.0)
        return self.corrected(made, nothing, sure=False)

    def corrected(self, made: Batch, logits: Tensor, *, sure: bool = True) -> Batch:
        """The same with one more click in the largest mistake, and the prediction as a prior.

        Args:
            made: clicked episodes.
            logits: (B, 160, 160).
            sure: whether the prediction becomes the prior.
        """
        shot_mask, hints = made.shot_masks[0].clone(), made.hints.clone()
        for place in range(logits.shape[0]):
            truth = made.query_mask[place].numpy()
            found = logits[place].numpy() > 0
            click = self._click(found, truth)
            if click is None:
                continue
            y, x, positive = click
            disk = _disk(y, x, LABEL_SIDE)
            shot_mask[place][disk < MARK_WIDTH / 2] = int(positive)
            near = (1 - disk / MARK_WIDTH).clamp_min(0)
            channel = 1 if positive else 2
            hints[place, channel] = torch.maximum(hints[place, channel], near)
        if sure:
            hints[:, 0] = logits.sigmoid() * 2 - 1
        return Batch(made.shots, [shot_mask], made.query, made.query_mask, hints, made.present)

    def maps(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        """The encoder's maps of views."""
        return {
            name: torch.from_numpy(np.stack([stored[n] for n in numbers])).float()
            for name, stored in self.views.maps.items()
        }

    def mask(self, view: int, label: int) -> Tensor:
        """(160, 160) of {0, 1, 255}; label -1 is nowhere."""
        labels = torch.from_numpy(np.array(self.views.labels[view]))
        inside = (labels > 0) & (labels != IGNORED) if label == WHOLE else labels == label
        return inside.byte().masked_fill_(labels == IGNORED, IGNORED)

    def prior(self, mask: Tensor) -> Tensor:
        """The mask of a query, moved and damaged as that of an earlier frame is: -1..1."""
        rng = self.rng
        scale = rng.uniform(0.85, 1.15)
        theta = torch.tensor(
            [[[scale, 0, rng.uniform(-0.12, 0.12)], [0, scale, rng.uniform(-0.12, 0.12)]]]
        )
        grid = F.affine_grid(theta, [1, 1, LABEL_SIDE, LABEL_SIDE], align_corners=False)
        moved = F.grid_sample((mask == 1).float()[None, None], grid, align_corners=False)
        noise = torch.from_numpy(
            np.random.default_rng(rng.randrange(2**32)).normal(size=(1, 1, 20, 20))
        ).float()
        noise = F.interpolate(noise, (LABEL_SIDE, LABEL_SIDE), mode="bicubic")
        return torch.tanh(4 * (moved - 0.5) + rng.uniform(0, 2) * noise)[0, 0]

    def _class(self) -> str:
        kinds = [kind for kind in SHARES if self.by_set[kind]]
        (kind,) = self.rng.choices(kinds, [SHARES[kind] for kind in kinds])
        return self.rng.choice(self.by_set[kind])

    def _apart(self, name: str, count: int) -> list[tuple[int, int]]:
        """Views of a class, of different photographs while there are enough."""
        shuffled = self.rng.sample(self.members[name], len(self.members[name]))
        chosen, sources = [], set()
        for one in shuffled:
            if self.views.views[one[0]].source not in sources:
                chosen.append(one)
                sources.add(self.views.views[one[0]].source)
            if len(chosen) == count:
                return chosen
        rest = [one for one in shuffled if one not in chosen]
        chosen += rest[: count - len(chosen)]
        while len(chosen) < count:
            chosen.append(self.rng.choice(shuffled))
        return chosen

    def _without(self, name: str) -> int:
        kind = name.split("/")[0]
        while True:
            number = self.rng.choice(self.allowed)
            view = self.views.views[number]
            same_set = any(one.startswith(f"{kind}/") for one in view.things.values())
            if name not in view.things.values() and (same_set or self.rng.random() < 0.3):
                return number

    def _click(self, found: np.ndarray, truth: np.ndarray) -> tuple[int, int, bool] | None:
        """As a person would: in the largest mistake, mostly in its middle."""
        ndimage: Any = import_extra("scipy.ndimage", extra="interactive", purpose="clicks")
        best: tuple[float, np.ndarray, bool] | None = None
        for positive, wrong in (
            (True, (truth == 1) & ~found),
            (False, (truth == 0) & found),
        ):
            if not wrong.any():
                continue
            depth = ndimage.distance_transform_edt(np.pad(wrong, 1))[1:-1, 1:-1]
            if best is None or depth.max() > best[0]:
                best = (float(depth.max()), depth, positive)
        if best is None:
            return None
        deepest, depth, positive = best
        places = np.argwhere(depth >= self.rng.uniform(0.3, 1.0) * deepest)
        y, x = places[self.rng.randrange(len(places))]
        return int(y), int(x), positive


def _disk(y: int, x: int, side: int) -> Tensor:
    """The distance of each pixel."""
    rows, columns = torch.arange(side).float(), torch.arange(side).float()
    return ((rows[:, None] - y) ** 2 + (columns[None] - x) ** 2).sqrt()


def targets(mask: Tensor) -> tuple[Tensor, Tensor]:
    """The truth and the weight of each pixel."""
    return (mask == 1).float(), (mask != IGNORED).float()
