"""MLC's baseline: one prototype a class, matched by cosine.

Yang, Zhuo, Qi, Shi, Gao: "Mining Latent Classes for Few-shot Segmentation", ICCV 2021. This is the
part whose code is public, the episodic baseline; mining and rectification are not in it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from fastfss.encoders import Encoder
from fastfss.methods.base import Images, freeze
from fastfss.methods.info import MethodInfo, PublishedScore
from fastfss.methods.prototypes import IGNORED, PrototypeSegmenter, cosine_scores
from fastfss.weights import MLC_KEYS

# The baseline's; the authors' repository has no figures of the full method.
SCORES = (
    PublishedScore("PASCAL-5i", "ResNet-50", 1, 57.9, (54.9, 66.5, 61.7, 48.3)),
    PublishedScore("PASCAL-5i", "ResNet-50", 5, 64.7, (61.6, 70.3, 70.5, 56.4)),
    PublishedScore("PASCAL-5i", "ResNet-101", 1, 60.1, (57.2, 68.5, 61.3, 53.3)),
    PublishedScore("PASCAL-5i", "ResNet-101", 5, 67.8, (64.2, 74.0, 71.5, 61.3)),
)


class MLC(PrototypeSegmenter):
    """MLC baseline: cosine of every query position with the support's two prototypes.

    Args:
        encoder: the backbone; published with "deep_resnet50" and "deep_resnet101".
        layers: the feature maps to match; published: layer3.
        size: see FewShotSegmenter.
    """

    method = "mlc"
    info = MethodInfo(
        title="MLC",
        paper="Yang, Zhuo, Qi, Shi, Gao: Mining Latent Classes for Few-shot Segmentation",
        venue="ICCV 2021",
        arxiv="2103.15402",
        encoders=("deep_resnet50", "deep_resnet101"),
        parity="three golden cases of the baseline; the rest of the paper has no public code",
        scores=SCORES,
    )
    pooling_resize = "features"
    published_keys = MLC_KEYS

    def __init__(
        self, encoder: Encoder, layers: Sequence[str] = ("layer3",), size: int | None = None
    ) -> None:
        super().__init__(encoder, layers, size)
        freeze(encoder, prefixes=())

    def scores(self, features: Tensor, foreground: Tensor, background: Tensor) -> Tensor:
        """Scores (B, 2, h, w) of features (B, C, h, w) with prototypes (B, C)."""
        return cosine_scores(features, foreground, background)

    def forward(self, images: Images, masks: Images, query: Tensor) -> Tensor:
        """Logits (B, 2, H, W) of an episode; arguments as in encode_support and segment."""
        return self.segment(query, self.encode_support(images, masks)).logits

    def loss(self, logits: Tensor, query_mask: Tensor) -> Tensor:
        """Cross-entropy of logits (B, 2, H, W) with masks (B, H, W), mean over pixels not 255."""
        return F.cross_entropy(logits, query_mask.long(), ignore_index=IGNORED)
