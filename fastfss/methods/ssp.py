"""SSP: self-support prototypes.

Fan, Pei, Tai, Tang: "Self-Support Few-Shot Semantic Segmentation", ECCV 2022.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastfss.data.masks import IGNORED
from fastfss.encoders import Encoder
from fastfss.methods.features import encoded_shots
from fastfss.methods.info import MethodInfo, PublishedScore
from fastfss.methods.prototypes import PrototypeSegmenter, cosine_scores, freeze, upsample
from fastfss.methods.self_support import SelfSupport, SelfSupportConfig, self_support
from fastfss.methods.shots import Images
from fastfss.weights import SSP_KEYS

SCORES = (
    PublishedScore("PASCAL-5i", "ResNet-50", 1, 61.7, (61.4, 67.8, 66.5, 50.9)),
    PublishedScore("PASCAL-5i", "ResNet-50", 5, 69.3, (67.5, 72.3, 75.2, 62.1)),
    PublishedScore("PASCAL-5i", "ResNet-101", 1, 64.6, (63.2, 70.4, 68.5, 56.3)),
    PublishedScore("PASCAL-5i", "ResNet-101", 5, 73.3, (70.9, 77.1, 78.9, 66.1)),
    PublishedScore("COCO-20i (own folds)", "ResNet-50", 1, 33.6, (46.4, 35.2, 27.3, 25.4)),
    PublishedScore("COCO-20i (own folds)", "ResNet-50", 5, 41.4, (53.9, 42.0, 36.0, 33.7)),
    PublishedScore("COCO-20i (own folds)", "ResNet-101", 1, 37.7, (50.4, 39.9, 30.6, 30.0)),
    PublishedScore("COCO-20i (own folds)", "ResNet-101", 5, 46.2, (57.8, 47.0, 40.2, 39.9)),
    PublishedScore("COCO-20i", "ResNet-50", 1, 37.4, (35.5, 39.6, 37.9, 36.7)),
    PublishedScore("COCO-20i", "ResNet-50", 5, 44.1, (40.6, 47.0, 45.1, 43.9)),
    PublishedScore("COCO-20i", "ResNet-101", 1, 42.0, (39.1, 45.1, 42.7, 41.2)),
    PublishedScore("COCO-20i", "ResNet-101", 5, 50.2, (47.4, 54.5, 50.4, 49.6)),
)


@dataclass(frozen=True, eq=False)
class SSPOutput:
    """What SSP's training forward returns; logits are (B, 2, H, W), at the query's size.

    Attributes:
        first: after the first self-support pass.
        refined: after the second; None without refinement.
        query_self: the query matched with prototypes of its own true mask.
        support_self: (K * B, 2, H, W), shot-major: each support matched with its own prototypes.
        head: the low-resolution scores and prototypes behind them.
    """

    first: Tensor
    refined: Tensor | None
    query_self: Tensor
    support_self: Tensor
    head: SelfSupport


class SSP(PrototypeSegmenter):
    """SSP: prototypes from the support, then from the query's own confident regions.

    Args:
        encoder: the backbone; published with "deep_resnet50" and "deep_resnet101".
        layers: the feature maps to match; published: layer3.
        size: see FewShotSegmenter.
        refine: whether to make the second self-support pass (the published figures do).
        config: thresholds and blend weights; the published ones by default.
    """

    method = "ssp"
    info = MethodInfo(
        title="SSP",
        paper="Fan, Pei, Tai, Tang: Self-Support Few-Shot Semantic Segmentation",
        venue="ECCV 2022",
        arxiv="2207.11549",
        encoders=("deep_resnet50", "deep_resnet101"),
        parity="eight golden cases: forward, training step, head alone, metrics",
        scores=SCORES,
    )
    pooling_resize = "mask"
    published_keys = SSP_KEYS

    def __init__(
        self,
        encoder: Encoder,
        layers: Sequence[str] = ("layer3",),
        size: int | None = None,
        *,
        refine: bool = True,
        config: SelfSupportConfig | None = None,
    ) -> None:
        super().__init__(encoder, layers, size)
        self.refine = refine
        self.config = config or SelfSupportConfig()
        # Published: the stem and layer1 are frozen and run without gradient.
        freeze(encoder, prefixes=("conv1", "bn1", "layer1"))

    def scores(self, features: Tensor, foreground: Tensor, background: Tensor) -> Tensor:
        """Final scores (B, 2, h, w) of features (B, C, h, w) with prototypes (B, C)."""
        return self_support(features, foreground, background, self.config, self.refine).final

    def forward(
        self, images: Images, masks: Images, query: Tensor, query_mask: Tensor
    ) -> SSPOutput:
        """The training forward.

        Args:
            images: supports, as in encode_support.
            masks: support masks, as in encode_support.
            query: (B, 3, H, W).
            query_mask: (B, H, W) of {0, 1, 255}.
        """
        size = (query.shape[2], query.shape[3])
        maps, shot_masks = encoded_shots(self.encode_shots(images, masks), "features", masks)
        return self.match(maps, shot_masks, self.features(query), query_mask, size)

    def match(
        self,
        support_maps: list[Tensor],
        support_masks: list[Tensor],
        features: Tensor,
        query_mask: Tensor,
        size: tuple[int, int],
    ) -> SSPOutput:
        """The training forward behind the encoder.

        Args:
            support_maps: K times (B, C, h, w).
            support_masks: K times (B, H, W).
            features: the query's (B, C, h, w).
            query_mask: (B, H, W).
            size: height and width of the logits.
        """
        prototypes = self.shot_prototypes(support_maps, support_masks)
        foreground, background = prototypes.mean(dim=1).unbind(1)
        head = self_support(features, foreground, background, self.config, self.refine)
        own = self.pool(features, query_mask)
        support_scores = [
            upsample(cosine_scores(shot_map, shot[:, 0], shot[:, 1]), size)
            for shot_map, shot in zip(support_maps, prototypes.unbind(1), strict=True)
        ]
        return SSPOutput(
            first=upsample(head.first.scores, size),
            refined=None if head.second is None else upsample(head.final, size),
            query_self=upsample(cosine_scores(features, own[:, 0], own[:, 1]), size),
            support_self=torch.cat(support_scores),
            head=head,
        )

    def loss(self, output: SSPOutput, query_mask: Tensor, masks: Images) -> dict[str, Tensor]:
        """The published losses: cross-entropy, mean over the pixels that are not 255.

        Args:
            output: of forward.
            query_mask: (B, H, W).
            masks: support masks as in encode_support, of the query's size.

        Returns:
            "first", "query_self", "support_self" (its weight 0.2 not applied), "refined" where
            there is one, and "total".
        """
        shot_masks = list(masks.unbind(1)) if isinstance(masks, Tensor) else list(masks)
        targets = {
            "first": (output.first, query_mask),
            "query_self": (output.query_self, query_mask),
            "support_self": (output.support_self, torch.cat(shot_masks)),
        }
        if output.refined is not None:
            targets["refined"] = (output.refined, query_mask)
        losses = {
            name: F.cross_entropy(logits, mask.long(), ignore_index=IGNORED)
            for name, (logits, mask) in targets.items()
        }
        weighted = [0.2 * v if name == "support_self" else v for name, v in losses.items()]
        return {**losses, "total": torch.stack(weighted).sum()}
