"""What PASCAL and COCO have in common: one grey or palette PNG of class numbers an image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fastfss.data.index import (
    Pair,
    Progress,
    Scanned,
    read_index_pair,
    read_indices,
    read_rgb,
    scan,
)
from fastfss.data.masks import IGNORED
from fastfss.data.sets import Item, MaskSet
from fastfss.errors import expected


class LabelMaps(MaskSet):
    """Images with label maps as published loaders read them: no EXIF rotation, indices as they are.

    Args:
        name: of the kind of set.
        root: of the files.
        classes: id -> name.
        names: of the images, in order.
        images, masks: their files below the root, with "/".
        ignores: whether masks hold 255.
        key: of the index file.
        progress: called while masks are read for the first time.

    Raises:
        FileNotFoundError, ValueError: as `fastfss.data.index.scan`; a label that is no class.
    """

    def __init__(
        self,
        name: str,
        root: Path,
        classes: Mapping[int, str],
        names: Sequence[str],
        images: Sequence[str],
        masks: Sequence[str],
        *,
        ignores: bool,
        key: str,
        progress: Progress | None = None,
    ) -> None:
        self.name, self.root, self.classes, self.ignores = name, root, classes, ignores
        pairs = [Pair(image, mask) for image, mask in zip(images, masks, strict=True)]
        scanned = scan(root, pairs, read_index_pair, key, progress)
        allowed = {0, *classes, *([IGNORED] if ignores else [])}
        items = []
        for one, pair, found in zip(names, pairs, scanned, strict=True):
            check_labels(root / pair.mask, found, allowed)
            pixels = {
                label: count for label, count in found.labels.items() if label not in (0, IGNORED)
            }
            items.append(Item(one, root / pair.image, root / pair.mask, pixels, found.size))
        self.items = tuple(items)

    def image(self, number: int) -> Tensor:
        """As `MaskSet.image`."""
        return read_rgb(self.items[number].image)

    def labels(self, number: int) -> Tensor:
        """As `MaskSet.labels`."""
        return torch.from_numpy(read_indices(self.items[number].mask))


def check_labels(mask: Path, scanned: Scanned, allowed: Iterable[int]) -> None:
    """Raise a ValueError that names the mask if it holds any other label."""
    unknown = sorted(set(scanned.labels) - set(allowed))
    if unknown:
        known = [label for label in allowed if label not in (0, IGNORED)]
        wanted = f"classes {min(known)}..{max(known)}"
        came = ", ".join(map(str, unknown[:5]))
        raise expected(f"mask '{mask}'", wanted, f"label{'s' * (len(unknown) > 1)} {came}")
