"""PPNet: PANet with several prototypes a class, its parts, refined by unlabelled images.

Liu, Zhang, Zhang, He: "Part-aware Prototype Network for Few-shot Semantic Segmentation", ECCV 2020.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from fastfss.data import ImageLike, read_image
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
from fastfss.methods.base import FewShotSegmenter, Images, Prediction, shots_of, stacked_shots
from fastfss.methods.frames import frame_image
from fastfss.methods.info import MethodInfo, PublishedScore
from fastfss.methods.latent_graph import (
    GraphConfig,
    LatentGraph,
    Unlabelled,
    segment_means,
    superpixels,
)
from fastfss.methods.memo import TensorMemo
from fastfss.methods.panet import Ignored, episodes, support_regions
from fastfss.methods.parts import (
    PartConfig,
    class_centres,
    episode_vectors,
    local_vectors,
)
from fastfss.methods.prototypes import IGNORED
from fastfss.methods.semantic_branch import SemanticBranch
from fastfss.ops import masked_average_pool, prototype_match
from fastfss.task import Task
from fastfss.weights import KeyMap

if TYPE_CHECKING:
    from typing_extensions import Self

SCALE = 20.0  # of every cosine

Variant = Literal["plain", "part", "part_sem", "graph"]

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


PUBLISHED_PARTS: Mapping[Variant, PartConfig] = {
    "plain": PartConfig(parts=1),
    "part": PartConfig(),
    "part_sem": PartConfig(alpha=0.5),
    "graph": PartConfig(rounds=20),
}


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


class PPNet(FewShotSegmenter):
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
        super().__init__(encoder, layers, size)
        _check_choice("variant", variant, get_args(Variant))
        _check_choice("ignored", ignored, get_args(Ignored))
        average = alignment_average or ("way" if variant == "graph" else "shot")
        _check_choice("alignment_average", average, get_args(Average))
        weights = {"alignment_weight": alignment_weight, "semantic_weight": semantic_weight}
        for name, weight in weights.items():
            if not weight >= 0:
                raise expected(name, "a number >= 0", str(weight))
        self.variant = variant
        self.parts = parts or PUBLISHED_PARTS[variant]
        self.graph = graph or GraphConfig()
        self.seed = seed
        self.ignored = ignored
        self.alignment_weight = alignment_weight
        self.alignment_average = average
        self.semantic_weight = semantic_weight
        channels = sum(encoder.info(layer).channels for layer in self.layers)
        if variant == "graph":
            # As published: a name of the checkpoint.
            self.latentGraph = LatentGraph(channels).requires_grad_(train_graph)
        if variant in ("part_sem", "graph"):
            self.aspp = SemanticBranch(channels, 1 + classes)
        # No head has to be trained before masks mean something: the semantic branch is for training
        # alone, and the graph's matrices are random as published.
        self.head_origin = "none"
        self.unlabelled: Unlabelled | None = None
        self._memo = TensorMemo()
        for name, parameter in encoder.named_parameters():
            if name.startswith(_FROZEN):
                parameter.requires_grad_(False)
        encoder.batch_statistics = batch_statistics
        self.train(self.training)  # batch_statistics counts from there

    # ---- Support

    def encode_support(
        self, images: Images, masks: Images, backgrounds: Images | None = None
    ) -> Task:
        """Turn a support set into a Task; see FewShotSegmenter.encode_support.

        Centres are found in all shots together, so the Task holds what they are found in, shot by
        shot: "features" (B, K, C, h, w), "regions" (B, K, 2, H, W), the masks of foreground and
        background, and "vectors" (B, K, 2, C), the mean feature under each. The variant "plain"
        needs the last alone.

        Args:
            images: (B, K, 3, H, W), or K tensors (B, 3, H, W); of one size.
            masks: (B, K, H, W), or K tensors (B, H, W); of one size, which may be another.
            backgrounds: like `masks`, 1 where the background is taken from; see PANet.
        """
        shots, shot_masks = stacked_shots(images, masks)
        shot_backgrounds = None
        if backgrounds is not None:
            _, listed = shots_of(images, backgrounds, argument="backgrounds")
            shot_backgrounds = torch.stack(listed, dim=1)
        regions = support_regions(shot_masks, shot_backgrounds, self.ignored)
        features = self.features(shots.flatten(0, 1))
        vectors = self.pool(features, regions.flatten(0, 1))
        leading = shots.shape[:2]
        tensors = {"vectors": vectors.unflatten(0, leading)}
        if self.variant != "plain":
            tensors |= {"features": features.unflatten(0, leading), "regions": regions}
        return Task(self.method, tensors)

    def pool(self, features: Tensor, regions: Tensor) -> Tensor:
        """Global vectors (B, M, C) of features (B, C, h, w), enlarged to regions (B, M, H, W)."""
        return masked_average_pool(
            features, regions, resize="features", align_corners=self.variant != "plain"
        )

    @torch.no_grad()
    def encode_unlabelled(self, images: Tensor, segments: Tensor) -> Unlabelled:
        """What the variant "graph" needs of unlabelled images; see Unlabelled.

        Args:
            images: (B, U, 3, H, W); of several ways, one way's after another's.
            segments: (B, U, H, W) integers, superpixels, or (H, W) for the same in all.
        """
        if images.ndim != 5 or images.shape[2] != 3:
            raise expected("images", "(B, U, 3, H, W)", str(tuple(images.shape)))
        if segments.ndim == 2:
            segments = segments.expand(*images.shape[:2], -1, -1)
        if segments.shape[:2] != images.shape[:2] or segments.ndim != 4:
            wanted = f"({images.shape[0]}, {images.shape[1]}, H, W) or (H, W)"
            raise expected("segments", wanted, str(tuple(segments.shape)))
        features = self.features(images.flatten(0, 1)).unflatten(0, images.shape[:2])
        return segment_means(features, segments)

    def fit_unlabelled(self, images: Iterable[ImageLike], *, segments: int = 100) -> Unlabelled:
        """Unlabelled images that hold the classes, cut into superpixels by SLIC.

        Args:
            images: see `fit`; at least one.
            segments: superpixels an image, about.

        Raises:
            MissingExtraError: without scikit-image.
        """
        framed, cut = [], []
        for index, image in enumerate(images):
            pixels = read_image(image, argument=f"images[{index}]")
            framed.append(self._prepare(pixels))
            seen = frame_image(pixels.unsqueeze(0).float(), self.frame, self.size)
            cut.append(superpixels(seen[0].round().clamp(0, 255).to(torch.uint8), segments))
        if not framed:
            raise expected("images", "at least one image", "none")
        if len({one.shape for one in framed}) != 1:
            sizes = ", ".join(f"{one.shape[2]} x {one.shape[3]}" for one in framed)
            raise expected("images", "one size, as a model with a `size` gives them", sizes)
        together = torch.stack(cut).unsqueeze(0).to(self.device)
        return self.encode_unlabelled(torch.stack(framed, dim=1), together)

    # ---- Prototypes

    def prototypes(
        self,
        tasks: Sequence[Task],
        unlabelled: Unlabelled | None = None,
        starts: Tensor | None = None,
    ) -> Tensor:
        """Prototypes (B, 1 + W, G, C) of an episode of W tasks, background first.

        They are kept as long as the tasks' tensors live, unless a gradient is wanted or `starts`
        are given.

        Args:
            tasks: one a way.
            unlabelled: for the variant "graph".
            starts: of k-means, see class_centres.
        """
        ways = self._ways(tasks)
        sources = [tensor for way in ways for tensor in way.values()]
        options: tuple[object, ...] = (self.variant, self.parts, self.seed)
        if unlabelled is not None:
            self._check_unlabelled(unlabelled)
            sources += [unlabelled.features, unlabelled.present, *self.latentGraph.parameters()]
            options = (*options, self.graph)
        wanted = torch.is_grad_enabled() and any(source.requires_grad for source in sources)
        keep = starts is None and not wanted
        found = self._memo.get(sources, options) if keep else None
        # Inference tensors are of no use to autograd, though the query may want a gradient.
        if found is not None and (torch.is_inference_mode_enabled() or not found.is_inference()):
            return found
        batch = max(len(source) for way in ways for source in way.values())
        ways = [{key: t.expand(batch, *t.shape[1:]) for key, t in way.items()} for way in ways]
        made, _ = self.make_prototypes(ways, unlabelled, starts)
        if keep:
            self._memo.put(sources, options, made)
        return made

    def make_prototypes(
        self,
        ways: Sequence[Mapping[str, Tensor]],
        unlabelled: Unlabelled | None = None,
        starts: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Prototypes (B, 1 + W, G, C), and their centres before the global vectors are added.

        Args:
            ways: of each way the tensors that a Task holds.
            unlabelled: for the variant "graph".
            starts: of k-means, see class_centres.
        """
        vectors = self.class_vectors([way["vectors"] for way in ways])
        if self.variant == "plain":
            return vectors.unsqueeze(2), None
        classes = episode_vectors(
            [way["features"] for way in ways], [way["regions"] for way in ways], self.parts
        )
        if starts is None:
            starts = self.draw_starts(len(vectors), len(classes))
        centres = class_centres(classes, starts, self.parts)
        prototypes = centres + self.parts.alpha * vectors.unsqueeze(2)
        if unlabelled is not None:
            prototypes, _ = self.latentGraph(prototypes, vectors, unlabelled, self.graph)
        return prototypes, centres

    def class_vectors(self, ways: Sequence[Tensor]) -> Tensor:
        """Global vectors (B, 1 + W, C) of background and ways, of each way's (B, K, 2, C)."""
        means = [way.mean(dim=1) for way in ways]
        background = torch.stack([mean[:, 1] for mean in means]).mean(dim=0)
        return torch.stack([background, *(mean[:, 0] for mean in means)], dim=1)

    def draw_starts(self, batch: int, classes: int) -> Tensor:
        """Where k-means starts, as fractions (B, N, G) of the number of local vectors.

        In evaluation mode from `seed`, and alike for all ways, so that a way's parts do not depend
        on the other ways.
        """
        if self.training:
            return torch.rand(batch, classes, self.parts.parts, dtype=torch.float64)
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.rand(2, self.parts.parts, dtype=torch.float64, generator=generator)
        return torch.cat([drawn[:1], drawn[1:].expand(classes - 1, -1)]).expand(batch, -1, -1)

    # ---- Query

    def segment(
        self,
        query: Tensor,
        task: Task | Sequence[Task],
        output_size: tuple[int, int] | None = None,
        *,
        unlabelled: Unlabelled | None = None,
        starts: Tensor | None = None,
    ) -> Prediction:
        """Segment query images; see FewShotSegmenter.segment.

        The logits are the published ones for several ways too: background first, with parts of the
        background of all ways' supports.

        Args:
            query: as there.
            task: as there.
            output_size: as there.
            unlabelled: of encode_unlabelled, for the variant "graph"; the model's own by default.
                Without any it matches with the parts alone.
            starts: at which local vectors k-means starts, see class_centres: background, then ways.
        """
        prototypes = self.prototypes(
            self.ways_of(query, task), unlabelled or self.unlabelled, starts
        )
        features = self.features(query)
        if prototypes.shape[3] != features.shape[1]:
            wanted = f"a task of {features.shape[1]} channels"
            raise expected("task", wanted, f"one of {prototypes.shape[3]}")
        scores = self.scores(features, prototypes)
        logits = self.enlarge(scores, output_size or (query.shape[2], query.shape[3]))
        return Prediction(logits, logits[:, 1:] - logits[:, :1])

    def scores(self, features: Tensor, prototypes: Tensor) -> Tensor:
        """Twenty times the largest cosine with a prototype of each class.

        Args:
            features: (B, C, h, w).
            prototypes: (B, N, G, C), or (1, N, G, C) for all.

        Returns:
            (B, N, h, w).
        """
        prototypes = prototypes.to(features.dtype).expand(len(features), -1, -1, -1)
        return prototype_match(features, prototypes, scale=SCALE, reduce="max")

    def enlarge(self, scores: Tensor, size: tuple[int, int]) -> Tensor:
        """Bilinear; with align_corners=True but for the variant "plain", which is PANet's."""
        aligned = self.variant != "plain"
        return F.interpolate(scores, size, mode="bilinear", align_corners=aligned)

    # ---- Training

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
            self._check_unlabelled(unlabelled)
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
                starts = self.draw_starts(len(features), len(classes))
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

    # ---- Checkpoints and checks

    def own_keys(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a checkpoint under our names, without heads that the variant lacks."""
        lacking = tuple(f"{head}." for head in _HEADS if not hasattr(self, head))
        found = super().own_keys(tensors).items()
        return {key: tensor for key, tensor in found if not key.startswith(lacking)}

    def settings(self) -> dict[str, str]:
        """What a task of this model needs where it is used; see FewShotSegmenter.settings."""
        prototypes = "one" if self.variant == "plain" else "parts"
        return {**super().settings(), "prototypes": prototypes}

    def fingerprinted(self) -> dict[str, Tensor]:
        """The entries of the state dict of which a Task depends: the encoder's."""
        return self.encoder.state_dict()

    def _ways(self, tasks: Sequence[Task]) -> list[dict[str, Tensor]]:
        """The tensors of tasks, in one order, checked against each other."""
        keys = ("vectors",) if self.variant == "plain" else ("vectors", "features", "regions")
        for task in tasks:
            if lacking := [key for key in keys if key not in task.tensors]:
                wanted = f"one with {', '.join(keys)} for the variant {self.variant!r}"
                raise expected("task", wanted, f"one without {', '.join(lacking)}")
        ways = [{key: task.tensors[key] for key in keys} for task in tasks]
        for key in keys:
            # Shots may differ in their number: the background is found in all of them together.
            shapes = {tuple(way[key].shape[2:]) for way in ways}
            if len(shapes) > 1:
                raise expected("task", f"{key} of one shape in all tasks", str(sorted(shapes)))
        return ways

    def _check_unlabelled(self, unlabelled: Unlabelled) -> None:
        if self.variant != "graph":
            raise expected("unlabelled", "None but for the variant 'graph'", repr(self.variant))


def _check_choice(argument: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise expected(argument, f"one of {', '.join(choices)}", repr(value))
