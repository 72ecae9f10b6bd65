"""PPNet: PANet with several prototypes a class, its parts, refined by unlabelled images.

Liu, Zhang, Zhang, He: "Part-aware Prototype Network for Few-shot Semantic Segmentation", ECCV 2020.
What it does with supports and queries stands in part_segmenter.py; this file trains it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from fastfss.data.masks import IGNORED
from fastfss.encoders import Encoder
from fastfss.errors import expected
from fastfss.methods.alignment import (
    Average,
    alignment_loss,
    pair_scores,
    predicted_regions,
    present_ways,
    region_prototypes,
)
from fastfss.methods.info import MethodInfo, PublishedScore
from fastfss.methods.latent_graph import GraphConfig, Unlabelled
from fastfss.methods.panet import Ignored, episodes, support_regions
from fastfss.methods.part_segmenter import SCALE, PartSegmenter, Variant, check_choice
from fastfss.methods.parts import PartConfig, class_centres, local_vectors
from fastfss.methods.semantic_branch import SemanticBranch
from fastfss.weights import KeyMap

if TYPE_CHECKING:
    from typing_extensions import Self

_FROZEN = ("conv1", "bn1", "layer1", "layer2")  # of the encoder, as published
_HEADS = ("aspp", "latentGraph")

# The variant "plain" was published with its encoder one level deeper.
PLAIN_KEYS = KeyMap("PPNet without parts", (("encoder.backbone.", "encoder."),))
PPNET_KEYS = KeyMap(
    "PPNet",
    (
        *(
            (f"encoder.{part}.", f"encoder.{part}.")
            for part in ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")
        ),
        *((f"{head}.", f"{head}.") for head in _HEADS),
        *PLAIN_KEYS.prefixes,
    ),
)

SCORES = (
    PublishedScore("PASCAL-5i", "ResNet-50", 1, 52.84),
    PublishedScore("PASCAL-5i", "ResNet-50", 5, 62.97),
    PublishedScore("PASCAL-5i", "ResNet-50", 1, 51.65, ways=2),
    PublishedScore("PASCAL-5i", "ResNet-50", 5, 61.30, ways=2),
)


@dataclass(frozen=True, eq=False)
class PPNetOutput:
    """What PPNet's training forward returns.

    Attributes:
        logits: (B, 1 + W, H, W), background first.
        alignment: the alignment loss, a mean over the B episodes; None where it is not computed.
        semantic: (B * W * K + B, 1 + classes, h, w): the semantic branch, of all supports, way by
            way and shot by shot, then of the queries; None where it is not computed.
        scores: (B, 1 + W, h, w), the logits before they are enlarged.
        centres: (B, 1 + W, G, C), the parts of background and ways, without global vectors.
        query_centres: likewise, of the query's prediction; None where they are not computed.
    """

    logits: Tensor
    alignment: Tensor | None
    semantic: Tensor | None
    scores: Tensor
    centres: Tensor | None
    query_centres: Tensor | None


class PPNet(PartSegmenter):
    """PPNet: the nearest of several prototypes a class, which k-means finds in the supports.

    Args:
        encoder: the backbone; published with "ppnet_resnet50" and "ppnet_resnet101".
        layers: the feature maps to match; published: layer4.
        size: see FewShotSegmenter.
        variant: what was published in steps: "plain", PANet on this encoder, with one prototype;
            "part", several; "part_sem", trained with a semantic branch; "graph", the full model,
            which refines the prototypes by unlabelled images.
        parts: how prototypes are made; as published for the variant by default.
        graph: how unlabelled images are used; as published for one shot by default.
        train_graph: whether the graph's matrices are trained. Published: they are in no group of
            the optimiser and stay as they were drawn.
        seed: of the vectors at which k-means starts when queries are segmented; published: unseeded
            NumPy. Training draws them anew each step, from torch's global generator.
        ignored: what the support pixels are whose mask is 255; see PANet.
        alignment_weight: of the alignment loss in training; with 0 it is not computed.
        alignment_average: see alignment_loss; by default "way" for "graph" and "shot" for others.
        semantic_weight: of the semantic loss in training; with 0 it is not computed.
        classes: classes of the semantic branch, besides the background.
        batch_statistics: whether layer3 and layer4 use each batch's statistics in training, as
            published.

    Attributes:
        unlabelled: the unlabelled images that the variant "graph" looks at where `segment` is given
            none, and in `predict`; of fit_unlabelled. None at first, and not saved.
    """

    method = "ppnet"
    info = MethodInfo(
        title="PPNet",
        paper="Liu, Zhang, Zhang, He: Part-aware Prototype Network for Few-shot Semantic "
        "Segmentation",
        venue="ECCV 2020",
        arxiv="2007.06309",
        encoders=("ppnet_resnet50", "ppnet_resnet101"),
        parity="four golden cases: parts of one and two ways, the graph, a training step with "
        "alignment and semantic branch",
        supports=("mask", "unlabelled images"),
        scores=SCORES,
    )
    published_keys = PPNET_KEYS
    head_keys = ("aspp.", "latentGraph.")
    frame = "square"
    default_size = 417

    def __init__(
        self,
        encoder: Encoder,
        layers: Sequence[str] = ("layer4",),
        size: int | None = None,
        *,
        variant: Variant = "part",
        parts: PartConfig | None = None,
        graph: GraphConfig | None = None,
        train_graph: bool = False,
        seed: int = 0,
        ignored: Ignored = "background",
        alignment_weight: float = 1.0,
        alignment_average: Average | None = None,
        semantic_weight: float = 0.1,
        classes: int = 15,
        batch_statistics: bool = True,
    ) -> None:
        super().__init__(
            encoder,
            layers,
            size,
            variant=variant,
            parts=parts,
            graph=graph,
            seed=seed,
            ignored=ignored,
        )
        average = alignment_average or ("way" if variant == "graph" else "shot")
        check_choice("alignment_average", average, get_args(Average))
        weights = {"alignment_weight": alignment_weight, "semantic_weight": semantic_weight}
        for name, weight in weights.items():
            if not weight >= 0:
                raise expected(name, "a number >= 0", str(weight))
        self.alignment_weight = alignment_weight
        self.alignment_average = average
        self.semantic_weight = semantic_weight
        if variant == "graph":
            self.latentGraph.requires_grad_(train_graph)
        if variant in ("part_sem", "graph"):
            self.aspp = SemanticBranch(self.channels, 1 + classes)
        # No head has to be trained before masks mean something: the semantic branch is for training
        # alone, and the graph's matrices are random as published.
        self.head_origin = "none"
        for name, parameter in encoder.named_parameters():
            if name.startswith(_FROZEN):
                parameter.requires_grad_(False)
        encoder.batch_statistics = batch_statistics
        self.train(self.training)  # batch_statistics counts from there

    def train(self, mode: bool = True) -> Self:
        """Set the mode; what is frozen of the encoder keeps its statistics, as published."""
        super().train(mode)
        for name, module in self.encoder.named_modules():
            if isinstance(module, _BatchNorm) and name.startswith(_FROZEN):
                module.eval()
        return self

    def forward(
        self,
        images: Tensor,
        masks: Tensor,
        query: Tensor,
        backgrounds: Tensor | None = None,
        *,
        unlabelled: Unlabelled | None = None,
        starts: Tensor | None = None,
        query_starts: Tensor | None = None,
    ) -> PPNetOutput:
        """The training forward.

        Args:
            images: supports (B, W, K, 3, H, W), or (B, K, 3, H, W) for one way.
            masks: (B, W, K, H, W), or (B, K, H, W); 1 on the object of its own way.
            query: (B, 3, H, W).
            backgrounds: like `masks`; see encode_support.
            unlabelled: of encode_unlabelled, for the variant "graph".
            starts: of the supports' k-means, see class_centres: background, then ways.
            query_starts: likewise, of the query's for the alignment loss.

        Raises:
            ValueError: if the shapes do not fit each other.
        """
        if query.ndim != 4:
            raise expected("query", "(B, 3, H, W)", str(tuple(query.shape)))
        images, masks, _ = episodes(images, masks, query)
        if backgrounds is not None and backgrounds.ndim == 4:
            backgrounds = backgrounds.unsqueeze(1)
        if unlabelled is not None:
            self.check_unlabelled(unlabelled)
        leading = images.shape[:3]
        together = self.features(torch.cat([images.flatten(0, 2), query]))
        supports, features = together.split([leading.numel(), len(query)])
        regions = support_regions(masks, backgrounds, self.ignored)
        vectors = self.pool(supports, regions.flatten(0, 2)).unflatten(0, leading)
        supports = supports.unflatten(0, leading)
        ways = [
            {"vectors": vectors[:, way], "features": supports[:, way], "regions": regions[:, way]}
            for way in range(leading[1])
        ]
        if starts is None and self.training:
            starts = self.random_starts(leading[0], 1 + leading[1])
        prototypes, centres = self.make_prototypes(ways, unlabelled, starts)
        scores = self.scores(features, prototypes)
        size = (query.shape[2], query.shape[3])
        alignment, query_centres = None, None
        if self.training and self.alignment_weight > 0:
            alignment, query_centres = self.align(supports, regions, features, scores, query_starts)
        semantic = None
        if self.training and self.semantic_weight > 0 and self.variant in ("part_sem", "graph"):
            semantic = self.aspp(F.relu(together))
        return PPNetOutput(
            self.enlarge(scores, size), alignment, semantic, scores, centres, query_centres
        )

    def random_starts(self, batch: int, classes: int) -> Tensor:
        """Where k-means starts, anew: fractions (B, N, G) of the number of local vectors."""
        return torch.rand(batch, classes, self.parts.parts, dtype=torch.float64)

    def align(
        self,
        supports: Tensor,
        regions: Tensor,
        features: Tensor,
        scores: Tensor,
        starts: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """The alignment loss, a mean over the batch, and the centres behind it.

        Args:
            supports: features (B, W, K, C, h, w).
            regions: (B, W, K, 2, H, W), foreground and background.
            features: the query's (B, C, h, w).
            scores: the query's (B, 1 + W, h, w).
            starts: of k-means, see class_centres: background, then ways.
        """
        query, found = features.unsqueeze(1), predicted_regions(scores.unsqueeze(1))
        prototypes, centres = region_prototypes(query, found), None
        if self.variant != "plain":
            classes = [
                local_vectors(
                    query,
                    found[:, :, number],
                    enlarge=self.parts.foreground_enlarge,
                    full_size=(regions.shape[4], regions.shape[5]),
                )
                for number in range(found.shape[2])
            ]
            if starts is None:
                starts = self.random_starts(len(features), len(classes))
            centres = class_centres(classes, starts, self.parts)
            prototypes = centres + self.parts.alpha * prototypes.unsqueeze(2)
        foregrounds, backgrounds = regions.unbind(3)
        loss = alignment_loss(
            pair_scores(supports, prototypes, scale=SCALE),
            foregrounds,
            backgrounds,
            present_ways(found),
            align_corners=self.variant != "plain",
            average=self.alignment_average,
        )
        return loss, centres

    def loss(
        self,
        output: PPNetOutput,
        query_mask: Tensor,
        semantic_labels: tuple[Tensor, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """The published losses.

        Args:
            output: of forward.
            query_mask: (B, H, W): 0 background, n the n-th way, 255 ignored.
            semantic_labels: for the semantic branch, the classes of training of the supports,
                (B, W, K, H, W), or (B, K, H, W) for one way, and of the query, (B, H, W): 0
                background, 255 ignored. Published: a class of the test is 255 in the query, but
                background in a support.

        Returns:
            "query", cross-entropy, mean over the pixels that are not 255; "alignment" and
            "semantic" where they were computed, without their weights; "total".
        """
        query = F.cross_entropy(output.logits, query_mask.long(), ignore_index=IGNORED)
        losses, total = {"query": query}, query
        if output.alignment is not None:
            losses["alignment"] = output.alignment
            total = total + self.alignment_weight * output.alignment
        if output.semantic is not None:
            if semantic_labels is None:
                wanted = "labels of supports and query (or a model with semantic_weight=0)"
                raise expected("semantic_labels", wanted, "none")
            supports, of_query = semantic_labels
            target = torch.cat([supports.flatten(0, -3), of_query]).long()
            large = self.enlarge(output.semantic, (target.shape[1], target.shape[2]))
            losses["semantic"] = F.cross_entropy(large, target, ignore_index=IGNORED)
            total = total + self.semantic_weight * losses["semantic"]
        return {**losses, "total": total}

    def own_keys(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a checkpoint under our names, without heads that the variant lacks."""
        lacking = tuple(f"{head}." for head in _HEADS if not hasattr(self, head))
        found = super().own_keys(tensors).items()
        return {key: tensor for key, tensor in found if not key.startswith(lacking)}
