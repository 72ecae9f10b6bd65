"""PANet: one prototype a class, a background that all ways share, and prototype alignment.

Wang, Liew, Zou, Zhou, Feng: "PANet: Few-Shot Image Semantic Segmentation with Prototype Alignment",
ICCV 2019.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from fastfss.data.masks import IGNORED
from fastfss.encoders import Encoder
from fastfss.errors import expected
from fastfss.methods.alignment import (
    alignment_loss,
    pair_scores,
    predicted_regions,
    present_ways,
    region_prototypes,
)
from fastfss.methods.features import Features, encoded_shots, map_of
from fastfss.methods.info import MethodInfo, PublishedScore
from fastfss.methods.prediction import Prediction
from fastfss.methods.prototypes import PrototypeSegmenter
from fastfss.methods.shots import Images
from fastfss.ops import masked_average_pool, prototype_match
from fastfss.task import Task
from fastfss.weights import KeyMap

SCALE = 20.0  # of every cosine (Wang et al., ICCV 2019, eq. 3)

Ignored = Literal["background", "excluded"]

PANET_KEYS = KeyMap("PANet", (("encoder.backbone.features.", "encoder.body."),))

SCORES = (
    PublishedScore("PASCAL-5i", "VGG-16", 1, 48.1, source="listing"),
    PublishedScore("PASCAL-5i", "VGG-16", 1, 66.5, metric="FB-IoU", source="listing"),
    PublishedScore("PASCAL-5i", "VGG-16", 5, 55.7, source="listing"),
    PublishedScore("PASCAL-5i", "VGG-16", 5, 70.7, metric="FB-IoU", source="listing"),
    PublishedScore("COCO-20i (own folds)", "VGG-16", 1, 20.9, source="listing"),
    PublishedScore("COCO-20i (own folds)", "VGG-16", 1, 59.2, metric="FB-IoU", source="listing"),
    PublishedScore("COCO-20i (own folds)", "VGG-16", 5, 29.7, source="listing"),
    PublishedScore("COCO-20i (own folds)", "VGG-16", 5, 63.5, metric="FB-IoU", source="listing"),
)


@dataclass(frozen=True, eq=False)
class PANetOutput:
    """What PANet's training forward returns.

    Attributes:
        logits: (N * B, 1 + W, H, W), all episodes' first queries first; channel 0 background.
        alignment: the alignment loss, a mean over the B episodes; None where it is not computed.
        scores: (B, N, 1 + W, h, w), the logits before they are enlarged.
        prototypes: (B, 1 + W, C), background first.
    """

    logits: Tensor
    alignment: Tensor | None
    scores: Tensor
    prototypes: Tensor


class PANet(PrototypeSegmenter):
    """PANet: cosine of every query position with each way's prototype and a common background's.

    Args:
        encoder: the backbone; published with "panet_vgg16".
        layers: the feature maps to match; published: its last.
        size: see FewShotSegmenter.
        ignored: what the support pixels are whose mask is 255: "background" as published, or
            "excluded", in neither prototype. The second takes scribbles in one map: 1 on strokes of
            the object, 0 on strokes of the background, 255 elsewhere.
        alignment_weight: of the alignment loss in training; with 0 it is not computed.
    """

    method = "panet"
    info = MethodInfo(
        title="PANet",
        paper="Wang, Liew, Zou, Zhou, Feng: PANet: Few-Shot Image Semantic Segmentation with "
        "Prototype Alignment",
        venue="ICCV 2019",
        arxiv="1908.06391",
        encoders=("panet_vgg16",),
        parity="five golden cases: forward of one and two ways, training steps with alignment",
        supports=("mask", "scribble", "box"),
        scores=SCORES,
    )
    pooling_resize = "features"
    grid_corners = False
    published_keys = PANET_KEYS
    frame = "square"
    default_size = 417

    def __init__(
        self,
        encoder: Encoder,
        layers: Sequence[str] = ("conv5_3",),
        size: int | None = None,
        *,
        ignored: Ignored = "background",
        alignment_weight: float = 1.0,
    ) -> None:
        super().__init__(encoder, layers, size)
        if ignored not in get_args(Ignored):
            raise expected("ignored", f"one of {', '.join(get_args(Ignored))}", repr(ignored))
        if not alignment_weight >= 0:
            raise expected("alignment_weight", "a number >= 0", str(alignment_weight))
        self.ignored = ignored
        self.alignment_weight = alignment_weight

    def encode_support(
        self, images: Images, masks: Images, backgrounds: Images | None = None
    ) -> Task:
        """Turn a support set into a Task of prototypes; see FewShotSegmenter.encode_support.

        Args:
            images: as there.
            masks: as there.
            backgrounds: like `masks`, each of its mask's size; 1 where the background prototype is
                taken from. By default that is everything that is not 1 in the mask (`ignored`).
                Scribbles: the strokes of the background. Boxes: what is outside of all of them. In
                published episodes of several ways: what is of no way.

        Returns:
            A Task of "foreground" and "background", (B, K, C) each.
        """
        return self.support_from(self.encode_shots(images, masks), masks, backgrounds)

    def support_from(
        self, features: Sequence[Features], masks: Images, backgrounds: Images | None = None
    ) -> Task:
        """Turn encoded shots into a Task; see encode_support."""
        maps, shot_masks = encoded_shots(features, "features", masks)
        shot_backgrounds: Sequence[Tensor | None] = [None] * len(shot_masks)
        if backgrounds is not None:
            _, shot_backgrounds = encoded_shots(
                features, "features", backgrounds, argument="backgrounds"
            )
        # Shots may have sizes of their own.
        shots = zip(maps, shot_masks, shot_backgrounds, strict=True)
        return self._task(torch.stack([self.pool(*shot) for shot in shots], dim=1))

    def segment_from(
        self,
        features: Features,
        task: Task | Sequence[Task],
        output_size: tuple[int, int] | None = None,
    ) -> Prediction:
        """Segment encoded queries; see FewShotSegmenter.segment_from.

        The logits are the published ones for several ways too: background first, with the mean of
        the ways' background prototypes.
        """
        tasks = self.checked_ways(task, features.batch)
        query = map_of(features, "features")
        pairs = [self._prototypes(one, query) for one in tasks]
        foregrounds, backgrounds = (torch.stack(side, dim=1) for side in zip(*pairs, strict=True))
        scores = self.scores(query, foregrounds, backgrounds.mean(dim=1))
        logits = enlarge(scores, output_size or features.size)
        return Prediction(logits, logits[:, 1:] - logits[:, :1])

    @property
    def mask_stride(self) -> int:
        """0: the features are enlarged to the mask."""
        return 0

    def regions(self, masks: Tensor, backgrounds: Tensor | None = None) -> Tensor:
        """Foreground and background, bool (..., 2, H, W), of masks and backgrounds (..., H, W)."""
        return support_regions(masks, backgrounds, self.ignored)

    def pool(self, features: Tensor, masks: Tensor, backgrounds: Tensor | None = None) -> Tensor:
        """Prototypes (B, 2, C), foreground and background, of (B, C, h, w) under (B, H, W)."""
        return self.pool_regions(features, self.regions(masks, backgrounds))

    def pool_regions(self, features: Tensor, regions: Tensor) -> Tensor:
        """Prototypes (B, M, C) of features (B, C, h, w), enlarged to the regions (B, M, H, W)."""
        return masked_average_pool(
            features, regions, resize=self.pooling_resize, align_corners=False
        )

    def scores(self, features: Tensor, foreground: Tensor, background: Tensor) -> Tensor:
        """Twenty times the cosine with each prototype.

        Args:
            features: (B, C, h, w).
            foreground: (B, W, C).
            background: (B, C).

        Returns:
            (B, 1 + W, h, w), background first.
        """
        prototypes = torch.cat([background.unsqueeze(1), foreground], dim=1)
        return prototype_match(features, prototypes, scale=SCALE)

    def forward(
        self, images: Tensor, masks: Tensor, query: Tensor, backgrounds: Tensor | None = None
    ) -> PANetOutput:
        """The training forward.

        Args:
            images: supports (B, W, K, 3, H, W), or (B, K, 3, H, W) for one way.
            masks: (B, W, K, H, W), or (B, K, H, W); 1 on the object of its own way.
            query: (B, N, 3, H, W), or (B, 3, H, W) for one query.
            backgrounds: like `masks`; see encode_support.

        Raises:
            ValueError: if the shapes do not fit each other.
        """
        images, masks, query = episodes(images, masks, query)
        if backgrounds is not None and backgrounds.ndim == 4:
            backgrounds = backgrounds.unsqueeze(1)
        batch, ways, shots = images.shape[:3]
        queries = query.shape[1]
        together = self.features(torch.cat([images.flatten(0, 2), query.flatten(0, 1)]))
        supports, features = together.split([batch * ways * shots, batch * queries])
        regions = self.regions(masks, backgrounds)
        pooled = self.pool_regions(supports, regions.flatten(0, 2))
        foreground, background = pooled.unflatten(0, (batch, ways, shots)).mean(dim=2).unbind(2)
        background = background.mean(dim=1)
        scores = self.scores(
            features,
            foreground.repeat_interleave(queries, dim=0),
            background.repeat_interleave(queries, dim=0),
        ).unflatten(0, (batch, queries))
        alignment = None
        if self.training and self.alignment_weight > 0:
            alignment = self.align(
                supports.unflatten(0, (batch, ways, shots)),
                regions,
                features.unflatten(0, (batch, queries)),
                scores,
            )
        return PANetOutput(
            logits=enlarge(scores.transpose(0, 1).flatten(0, 1), (query.shape[3], query.shape[4])),
            alignment=alignment,
            scores=scores,
            prototypes=torch.cat([background.unsqueeze(1), foreground], dim=1),
        )

    def align(self, supports: Tensor, regions: Tensor, features: Tensor, scores: Tensor) -> Tensor:
        """The alignment loss, a mean over the batch.

        Args:
            supports: features (B, W, K, C, h, w).
            regions: (B, W, K, 2, H, W) of `regions`.
            features: the queries' (B, N, C, h, w).
            scores: the queries' (B, N, 1 + W, h, w).
        """
        predicted = predicted_regions(scores)
        prototypes = region_prototypes(features, predicted)
        foregrounds, backgrounds = regions.unbind(3)
        return alignment_loss(
            pair_scores(supports, prototypes, scale=SCALE),
            foregrounds,
            backgrounds,
            present_ways(predicted),
        )

    def loss(self, output: PANetOutput, query_mask: Tensor) -> dict[str, Tensor]:
        """The published losses.

        Args:
            output: of forward.
            query_mask: (B, N, H, W), or (B, H, W) for one query: 0 background, n the n-th way, 255
                ignored.

        Returns:
            "query", cross-entropy, mean over the pixels that are not 255; "alignment" where it was
            computed, without its weight; "total".
        """
        target = query_mask.unsqueeze(1) if query_mask.ndim == 3 else query_mask
        target = target.transpose(0, 1).flatten(0, 1).long()
        query = F.cross_entropy(output.logits, target, ignore_index=IGNORED)
        if output.alignment is None:
            return {"query": query, "total": query}
        total = query + self.alignment_weight * output.alignment
        return {"query": query, "alignment": output.alignment, "total": total}


def enlarge(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear with align_corners=False, which of this family PANet alone uses."""
    return F.interpolate(scores, size, mode="bilinear", align_corners=False)


def support_regions(masks: Tensor, backgrounds: Tensor | None, ignored: Ignored) -> Tensor:
    """Foreground and background, bool (..., 2, H, W), of masks and backgrounds (..., H, W)."""
    if backgrounds is None:
        background = masks == 0 if ignored == "excluded" else masks != 1
    elif backgrounds.shape != masks.shape:
        wanted = f"{tuple(masks.shape)} as the masks have"
        raise expected("backgrounds", wanted, str(tuple(backgrounds.shape)))
    else:
        background = backgrounds == 1
    return torch.stack([masks == 1, background], dim=-3)


def episodes(images: Tensor, masks: Tensor, query: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(B, W, K, 3, H, W), (B, W, K, H, W) and (B, N, 3, H, W) of a training call."""
    if images.ndim == 5:
        images, masks = images.unsqueeze(1), masks.unsqueeze(1)
    if query.ndim == 4:
        query = query.unsqueeze(1)
    if images.ndim != 6 or images.shape[3] != 3:
        raise expected("images", "(B, W, K, 3, H, W) or (B, K, 3, H, W)", str(tuple(images.shape)))
    batch, ways, shots, _, height, width = images.shape
    if masks.shape[:3] != (batch, ways, shots) or masks.ndim != 5:
        wanted = f"({batch}, {ways}, {shots}, H, W) for these images"
        raise expected("masks", wanted, str(tuple(masks.shape)))
    if query.ndim != 5 or query.shape[0] != batch or query.shape[2:] != (3, height, width):
        wanted = f"({batch}, N, 3, {height}, {width}) for these images"
        raise expected("query", wanted, str(tuple(query.shape)))
    return images, masks, query
