"""Methods that turn a support set into one foreground and one background prototype a shot."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastfss.encoders import Encoder
from fastfss.errors import expected
from fastfss.methods.base import FewShotSegmenter
from fastfss.methods.features import Features, encoded_shots, map_of
from fastfss.methods.prediction import Prediction
from fastfss.methods.shots import Images
from fastfss.ops import masked_average_pool, prototype_match
from fastfss.task import Task

SCALE = 10.0  # of every cosine score (Fan et al., ECCV 2022; Yang et al., ICCV 2021)


def region_masks(masks: Tensor) -> Tensor:
    """(B, H, W) of {0, 1, 255} -> bool (B, 2, H, W): foreground, background, 255 in neither."""
    return torch.stack([masks == 1, masks == 0], dim=1)


def cosine_scores(features: Tensor, foreground: Tensor, background: Tensor) -> Tensor:
    """Ten times the cosine with the background and the foreground prototype.

    Args:
        features: (B, C, h, w).
        foreground: (B, C), or (B, C, h, w) for one prototype a position.
        background: likewise.

    Returns:
        (B, 2, h, w): background score, foreground score.
    """
    if foreground.ndim == background.ndim:
        return prototype_match(features, torch.stack([background, foreground], 1), scale=SCALE)
    pair = [
        prototype_match(features, p.unsqueeze(1), scale=SCALE) for p in (background, foreground)
    ]
    return torch.cat(pair, dim=1)


def upsample(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear with align_corners=True, as all published code of this family does."""
    return F.interpolate(scores, size, mode="bilinear", align_corners=True)


class PrototypeSegmenter(FewShotSegmenter):
    """Support side of MLC, PANet and SSP: masked averages, K shots with equal weight."""

    # "mask": the mask is shrunk to the features; "features": the features are enlarged to the mask.
    pooling_resize: Literal["mask", "features"]

    @property
    def mask_stride(self) -> int:
        """See FewShotSegmenter.mask_stride."""
        # All layers are on the grid of the first.
        return 0 if self.pooling_resize == "features" else self.encoder.info(self.layers[0]).stride

    def pool(self, features: Tensor, masks: Tensor) -> Tensor:
        """Prototypes (B, 2, C), foreground and background, of (B, C, h, w) under (B, H, W)."""
        return masked_average_pool(features, region_masks(masks), resize=self.pooling_resize)

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        """The one map that is matched, "features"."""
        return {"features": self.features(images)}

    def support_from(self, features: Sequence[Features], masks: Images) -> Task:
        """Turn encoded shots into a Task of prototypes; see FewShotSegmenter.support_from.

        The Task holds "foreground" and "background", (B, K, C) each.
        """
        shot_maps, shot_masks = encoded_shots(features, "features", masks)
        return self._task(self.shot_prototypes(shot_maps, shot_masks))

    def segment_from(
        self,
        features: Features,
        task: Task | Sequence[Task],
        output_size: tuple[int, int] | None = None,
    ) -> Prediction:
        """Segment encoded queries; see FewShotSegmenter.segment_from."""
        tasks = self.checked_ways(task, features.batch)
        query, size = map_of(features, "features"), output_size or features.size
        return Prediction.from_pairs(
            [upsample(self.scores(query, *self._prototypes(one, query)), size) for one in tasks]
        )

    def logits_grid(self, features: Features, tasks: Sequence[Task]) -> tuple[int, int]:
        """The features' own; see FewShotSegmenter.logits_grid."""
        height, width = map_of(features, "features").shape[-2:]
        return height, width

    @abstractmethod
    def scores(self, features: Tensor, foreground: Tensor, background: Tensor) -> Tensor:
        """Final scores (B, 2, h, w) of query features (B, C, h, w) with prototypes (B, C)."""

    def shot_prototypes(self, maps: list[Tensor], masks: list[Tensor]) -> Tensor:
        """Prototypes (B, K, 2, C), foreground and background, of K maps and masks."""
        return torch.stack([self.pool(*shot) for shot in zip(maps, masks, strict=True)], dim=1)

    def _task(self, prototypes: Tensor) -> Task:
        tensors = {"foreground": prototypes[:, :, 0], "background": prototypes[:, :, 1]}
        return Task(self.method, tensors)

    def _prototypes(self, task: Task, features: Tensor) -> tuple[Tensor, Tensor]:
        """Foreground and background (B, C): the mean over the task's shots."""
        batch, channels = features.shape[:2]
        means = []
        for key in ("foreground", "background"):
            shots = task.tensors[key]
            if shots.shape[2] != channels or shots.shape[0] not in (1, batch):
                raise expected(
                    "task",
                    f"{key} prototypes (1 or {batch}, K, {channels})",
                    str(tuple(shots.shape)),
                )
            means.append(shots.to(features.dtype).mean(dim=1).expand(batch, channels))
        return means[0], means[1]


def freeze(encoder: Encoder, *, prefixes: tuple[str, ...]) -> None:
    """Leave only convolutions to train, and of them none whose name begins with a prefix."""
    for name, module in encoder.named_modules():
        trained = isinstance(module, nn.Conv2d | nn.Linear) and not name.startswith(prefixes)
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(trained)
