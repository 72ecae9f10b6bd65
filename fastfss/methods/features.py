"""What a method keeps of encoded images, so that nothing is encoded twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastfss.errors import expected
from fastfss.methods.shots import Images, masks_of, stacked_masks


@dataclass(frozen=True, eq=False)
class Features:
    """A batch of images as a method sees them: of `encode`, for `support_from` and `segment_from`.

    Attributes:
        maps: name -> (B, C, h, w).
        size: height and width of the images.
    """

    maps: Mapping[str, Tensor]
    size: tuple[int, int]

    @property
    def batch(self) -> int:
        """The number of images."""
        return next(iter(self.maps.values())).shape[0]

    @property
    def nbytes(self) -> int:
        """What the maps take of memory."""
        return sum(one.numel() * one.element_size() for one in self.maps.values())

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Features:
        """The features on another device or in another precision."""
        return Features(
            {k: v.to(device=device, dtype=dtype) for k, v in self.maps.items()}, self.size
        )

    def select(self, images: Sequence[int]) -> Features:
        """Those of some images of the batch."""
        places = list(images)
        return Features({name: one[places] for name, one in self.maps.items()}, self.size)

    @staticmethod
    def cat(parts: Sequence[Features]) -> Features:
        """Several batches of images of one size as one.

        Raises:
            ValueError: no part, or parts of different sizes or maps.
        """
        sizes = {part.size for part in parts}
        names = {tuple(part.maps) for part in parts}
        if len(sizes) != 1 or len(names) != 1:
            came = "; ".join(f"{part.size} {', '.join(part.maps)}" for part in parts) or "none"
            raise expected("features", "maps of the same names, of images of one size", came)
        if len(parts) == 1:
            return parts[0]
        return Features(
            {name: torch.cat([part.maps[name] for part in parts]) for name in parts[0].maps},
            parts[0].size,
        )


def stacked_features(
    features: Sequence[Features], names: Sequence[str], masks: Images
) -> tuple[dict[str, Tensor], Tensor]:
    """The maps (B * K, C, h, w) of K encoded shots, an episode's side by side, and their masks.

    Args:
        features: of images of one size.
        names: of the maps.
        masks: as in support_from.

    Returns:
        The maps, and the masks (B, K, H, W).

    Raises:
        TypeError, ValueError: no shot, or maps or masks that do not fit each other.
    """
    stacked = stacked_masks(masks, len(features), features[0].batch if features else 0)
    maps = {}
    for name in names:
        shots = [map_of(one, name) for one in features]
        if len({one.shape for one in shots}) != 1:
            came = ", ".join(str(tuple(one.shape)) for one in shots)
            raise expected("features", f"maps {name!r} of one size in all shots", came)
        maps[name] = shots[0] if len(shots) == 1 else torch.stack(shots, dim=1).flatten(0, 1)
    return maps, stacked


def map_of(features: Features, name: str) -> Tensor:
    """One map (B, C, h, w); ValueError if there is none of the name: another method's features."""
    if name not in features.maps:
        raise expected("features", f"a map {name!r}", ", ".join(features.maps))
    return features.maps[name]


def normalised(x: Tensor) -> Tensor:
    """F.normalize over the channels, in float32 at least: its 1e-12 is 0 in half."""
    exact = x.to(torch.promote_types(x.dtype, torch.float32))
    return F.normalize(exact, dim=1).to(x.dtype)


def encoded_shots(
    features: Sequence[Features],
    name: str,
    masks: Images,
    *,
    argument: str = "masks",
) -> tuple[list[Tensor], list[Tensor]]:
    """One map (B, C, h, w) and the mask (B, H, W) of each of K shots, checked.

    `argument` is what messages call the masks.
    """
    maps = [map_of(one, name) for one in features]
    return maps, masks_of(masks, len(maps), maps[0].shape[0] if maps else 0, argument=argument)
