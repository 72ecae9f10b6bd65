"""PPNet's supports and queries: a class is several prototypes, and a position goes to the nearest.

Liu, Zhang, Zhang, He: "Part-aware Prototype Network for Few-shot Semantic Segmentation", ECCV 2020.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from fastfss.data import ImageLike, read_image
from fastfss.encoders import Encoder
from fastfss.errors import expected
from fastfss.methods.base import FewShotSegmenter
from fastfss.methods.features import Features, map_of, stacked_features
from fastfss.methods.frames import frame_image
from fastfss.methods.latent_graph import (
    GraphConfig,
    LatentGraph,
    Unlabelled,
    segment_means,
    superpixels,
)
from fastfss.methods.memo import TensorMemo
from fastfss.methods.panet import Ignored, support_regions
from fastfss.methods.parts import PartConfig, class_centres, episode_vectors
from fastfss.methods.prediction import Prediction
from fastfss.methods.shots import Images, stacked_masks, stacked_shots
from fastfss.ops import masked_average_pool, prototype_match
from fastfss.task import Task

SCALE = 20.0  # of every cosine

Variant = Literal["plain", "part", "part_sem", "graph"]

PUBLISHED_PARTS: Mapping[Variant, PartConfig] = {
    "plain": PartConfig(parts=1),
    "part": PartConfig(),
    "part_sem": PartConfig(alpha=0.5),
    "graph": PartConfig(rounds=20),
}


class PartSegmenter(FewShotSegmenter):
    """What PPNet does once it is trained; see PPNet for the arguments."""

    def __init__(
        self,
        encoder: Encoder,
        layers: Sequence[str],
        size: int | None,
        *,
        variant: Variant,
        parts: PartConfig | None,
        graph: GraphConfig | None,
        seed: int,
        ignored: Ignored,
    ) -> None:
        super().__init__(encoder, layers, size)
        check_choice("variant", variant, get_args(Variant))
        check_choice("ignored", ignored, get_args(Ignored))
        self.variant = variant
        self.parts = parts or PUBLISHED_PARTS[variant]
        self.graph = graph or GraphConfig()
        self.seed = seed
        self.ignored = ignored
        self.channels = sum(encoder.info(layer).channels for layer in self.layers)
        if variant == "graph":
            self.latentGraph = LatentGraph(self.channels)  # called so in checkpoints
        self.unlabelled: Unlabelled | None = None
        self._memo = TensorMemo()

    # ---- Support

    def encode_support(
        self, images: Images, masks: Images, backgrounds: Images | None = None
    ) -> Task:
        """Turn a support set into a Task; see FewShotSegmenter.encode_support.

        Parts are found in all shots together, those of the background in all ways' shots. So the
        Task holds what they are found in, shot by shot: "features" (B, K, C, h, w), "regions"
        (B, K, 2, H, W), the masks of foreground and background, and "vectors" (B, K, 2, C), the
        mean feature under each. The variant "plain" needs the last alone.

        Args:
            images: (B, K, 3, H, W), or K tensors (B, 3, H, W); of one size.
            masks: (B, K, H, W), or K tensors (B, H, W); of one size, which may be another.
            backgrounds: like `masks`, 1 where the background is taken from; see PANet.
        """
        stacked_shots(images, masks)
        return self.support_from(self.encode_shots(images, masks), masks, backgrounds)

    def support_from(
        self, features: Sequence[Features], masks: Images, backgrounds: Images | None = None
    ) -> Task:
        """Turn encoded shots into a Task; see encode_support."""
        maps, shot_masks = stacked_features(features, ("features",), masks)
        leading = shot_masks.shape[:2]
        shot_backgrounds = None
        if backgrounds is not None:
            shot_backgrounds = stacked_masks(
                backgrounds, leading[1], leading[0], argument="backgrounds"
            )
        regions = support_regions(shot_masks, shot_backgrounds, self.ignored)
        vectors = self.pool(maps["features"], regions.flatten(0, 1))
        tensors = {"vectors": vectors.unflatten(0, leading)}
        if self.variant != "plain":
            tensors |= {"features": maps["features"].unflatten(0, leading), "regions": regions}
        return Task(self.method, tensors)

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        """The one map that is matched, "features"."""
        return {"features": self.features(images)}

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
        leading = images.shape[:2]
        if segments.ndim == 2:
            segments = segments.expand(*leading, -1, -1)
        if segments.ndim != 4 or segments.shape[:2] != leading:
            wanted = f"({leading[0]}, {leading[1]}, H, W) or (H, W)"
            raise expected("segments", wanted, str(tuple(segments.shape)))
        return segment_means(self.features(images.flatten(0, 1)).unflatten(0, leading), segments)

    def fit_unlabelled(self, images: Iterable[ImageLike], *, segments: int = 100) -> Unlabelled:
        """Unlabelled images that hold the classes, cut into superpixels by SLIC.

        Args:
            images: as `fit` takes them; at least one.
            segments: superpixels an image, about.

        Raises:
            ValueError: if there is no image, or one cannot be used; it is named.
            MissingExtraError: without scikit-image.
        """
        framed, cut = [], []
        for index, image in enumerate(images):
            pixels = read_image(image, argument=f"images[{index}]")
            framed.append(self.prepare(pixels))
            seen = frame_image(pixels.unsqueeze(0).float(), self.frame, self.size)
            cut.append(superpixels(seen[0].round().clamp(0, 255).to(torch.uint8), segments))
        if len({one.shape for one in framed}) != 1:
            sizes = ", ".join(f"{one.shape[2]} x {one.shape[3]}" for one in framed)
            raise expected("images", "at least one image, all of one size", sizes or "none")
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

        Raises:
            ValueError: if tasks or unlabelled images do not fit the model or each other.
        """
        ways = self._ways(tasks)
        sources = [tensor for way in ways for tensor in way.values()]
        batches = [way["vectors"].shape[0] for way in ways]
        options: tuple[object, ...] = (self.variant, self.parts, self.seed)
        if unlabelled is not None:
            self.check_unlabelled(unlabelled)
            sources += [unlabelled.features, unlabelled.present, *self.latentGraph.parameters()]
            batches.append(unlabelled.features.shape[0])
            options = (*options, self.graph)
        batch = max(batches)
        if not {1, batch}.issuperset(batches):
            raise expected("task, unlabelled", "one batch size, or 1", str(batches))
        wanted = torch.is_grad_enabled() and any(source.requires_grad for source in sources)
        keep = starts is None and not wanted
        found = self._memo.get(sources, options) if keep else None
        # Inference tensors are of no use to autograd, though the query may want a gradient.
        if found is not None and (torch.is_inference_mode_enabled() or not found.is_inference()):
            return found
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
            starts: of k-means, see class_centres; by default the model's own.
        """
        vectors = self.class_vectors([way["vectors"] for way in ways])
        if self.variant == "plain":
            return vectors.unsqueeze(2), None
        classes = episode_vectors(
            [way["features"] for way in ways], [way["regions"] for way in ways], self.parts
        )
        drawn = self.own_starts(len(classes)) if starts is None else starts
        centres = class_centres(classes, drawn, self.parts)
        prototypes = centres + self.parts.alpha * vectors.unsqueeze(2)
        if unlabelled is not None:
            prototypes, _ = self.latentGraph(prototypes, vectors, unlabelled, self.graph)
        return prototypes, centres

    def class_vectors(self, ways: Sequence[Tensor]) -> Tensor:
        """Global vectors (B, 1 + W, C) of background and ways, of each way's (B, K, 2, C)."""
        means = [way.mean(dim=1) for way in ways]
        background = torch.stack([mean[:, 1] for mean in means]).mean(dim=0)
        return torch.stack([background, *(mean[:, 0] for mean in means)], dim=1)

    def own_starts(self, classes: int) -> Tensor:
        """Where k-means starts, by `seed`: fractions (N, G) of the number of local vectors.

        Alike for all ways, so that a way's parts do not depend on which other ways there are.
        """
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.rand(2, self.parts.parts, dtype=torch.float64, generator=generator)
        return torch.cat([drawn[:1], drawn[1:].expand(classes - 1, -1)])

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

        The logits are the published ones for several ways too: background first, whose parts are
        found in all ways' supports.

        Args:
            query: as there.
            task: as there.
            output_size: as there.
            unlabelled: of encode_unlabelled, for the variant "graph"; the model's own by default.
                Without any it matches with the parts alone.
            starts: at which local vectors k-means starts, see class_centres: background, then ways.
        """
        tasks = self.ways_of(query, task)
        return self.segment_from(
            self.encode(query), tasks, output_size, unlabelled=unlabelled, starts=starts
        )

    def segment_from(
        self,
        features: Features,
        task: Task | Sequence[Task],
        output_size: tuple[int, int] | None = None,
        *,
        unlabelled: Unlabelled | None = None,
        starts: Tensor | None = None,
    ) -> Prediction:
        """Segment encoded queries; see FewShotSegmenter.segment_from, and `segment`."""
        tasks = self.checked_ways(task, features.batch)
        prototypes = self.prototypes(tasks, unlabelled or self.unlabelled, starts)
        if prototypes.shape[0] not in (1, features.batch):
            wanted = f"images of batch 1 or {features.batch}, the query's"
            raise expected("unlabelled", wanted, f"of batch {prototypes.shape[0]}")
        scores = self.scores(map_of(features, "features"), prototypes)
        logits = self.enlarge(scores, output_size or features.size)
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

    # ---- Checks

    def settings(self) -> dict[str, str]:
        """What a task of this model needs where it is used; see FewShotSegmenter.settings."""
        prototypes = "one" if self.variant == "plain" else "parts"
        return {**super().settings(), "prototypes": prototypes}

    def fingerprinted(self) -> dict[str, Tensor]:
        """The entries of the state dict of which a Task depends: the encoder's."""
        return self.encoder.state_dict()

    def check_unlabelled(self, unlabelled: Unlabelled) -> None:
        """Raise ValueError unless the model uses unlabelled images, and of as many channels."""
        if self.variant != "graph":
            wanted = f"none for the variant {self.variant!r}: only 'graph' looks at them"
            raise expected("unlabelled", wanted, "some")
        if unlabelled.features.shape[3] != self.channels:
            came = str(tuple(unlabelled.features.shape))
            raise expected("unlabelled", f"features (B, U, S, {self.channels})", came)

    def _ways(self, tasks: Sequence[Task]) -> list[dict[str, Tensor]]:
        """The tensors of tasks that the variant needs, in one order, checked."""
        keys = ("vectors",) if self.variant == "plain" else ("vectors", "features", "regions")
        for task in tasks:
            if lacking := [key for key in keys if key not in task.tensors]:
                wanted = f"one with {', '.join(keys)} for the variant {self.variant!r}"
                raise expected("task", wanted, f"one without {', '.join(lacking)}")
            shape = tuple(task.tensors["vectors"].shape)
            if shape[2:] != (2, self.channels):
                raise expected("task", f"vectors (B, K, 2, {self.channels})", str(shape))
        ways = [{key: task.tensors[key] for key in keys} for task in tasks]
        for key in keys:
            # The background is found in all ways' shots together.
            shapes = sorted({tuple(way[key].shape[2:]) for way in ways})
            if len(shapes) > 1:
                raise expected("task", f"tasks whose {key} have one shape", str(shapes))
        return ways


def check_choice(argument: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError, naming `argument`, unless the value is one of the choices."""
    if value not in choices:
        raise expected(argument, f"one of {', '.join(choices)}", repr(value))
