"""Guided networks: what a support says becomes a vector that guides the query's segmentation.

Rakelly, Shelhamer, Darrell, Efros, Levine: "Few-shot Segmentation Propagation with Guided
Networks", arXiv 1806.07373, 2018, and "Conditional Networks for Few-shot Semantic Segmentation",
ICLR workshop 2018. Here is what the family shares, and its main network, late and global. The early
one is in `guided_early`, those whose annotation lies on the query itself in `interactive`, the
unguided one in `fcn32s`, and all by their published names in `guided_networks`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from fastfss.data.masks import IGNORED
from fastfss.encoders import Encoder
from fastfss.encoders.fcn_vgg import FCNVGG
from fastfss.errors import CheckpointError, expected
from fastfss.methods.base import FewShotSegmenter
from fastfss.methods.features import Features, encoded_shots, map_of
from fastfss.methods.guided_parts import (
    VALUES,
    Grid,
    PairHead,
    average_guidance,
    before_the_first_empty,
    fixed_annotation_kernel,
    normalised_mass,
    one_hot,
    pooled,
)
from fastfss.methods.info import MethodInfo
from fastfss.methods.memo import TensorMemo
from fastfss.methods.prediction import Prediction
from fastfss.methods.shots import Images, shots_of
from fastfss.methods.ways import prediction_of
from fastfss.task import Task
from fastfss.weights import KeyMap

Average = Literal["annotated", "all"]

# Published names are ours, but where there are two encoders.
GUIDED_KEYS = KeyMap("guided networks", ())
_OF_HEAD = "W_g z"  # what is kept of guidance
_PAPER = (
    "Rakelly, Shelhamer, Darrell, Efros, Levine: Few-shot Segmentation Propagation with Guided "
    "Networks"
)


def card(title: str, encoders: tuple[str, ...], parity: str) -> MethodInfo:
    """The card of one of the family."""
    return MethodInfo(
        title=title,
        paper=_PAPER,
        venue="2018",
        arxiv="1806.07373",
        encoders=encoders,
        parity=parity,
        supports=("mask", "point", "scribble"),
    )


class GuidedSegmenter(FewShotSegmenter):
    """What the family shares: the grid of its features, the decoder, the loss.

    Published training: SGD of one episode a step, learning rate 1e-6 for few-shot classes and 1e-5
    for interactive images, constant over 100 000 steps, momentum 0.99, weight decay 5e-4 on all
    parameters, biases too. Images keep their size, and nothing is augmented; annotations are drawn
    anew for each episode (`fastfss.data.sparse`).
    """

    published_keys = GUIDED_KEYS
    head_keys = ("head.fc7.",)  # other networks call their classifier "head"
    # Fixed kernels, and the guidance that a model had when it was saved.
    ignored_keys = ("decoder.weight", "anno_enc.weight", "z", "num_z")

    def __init__(self, encoder: Encoder, layers: Sequence[str], size: int | None) -> None:
        super().__init__(encoder, layers, size)
        if isinstance(encoder, FCNVGG):
            encoder.truncate_(self.layers[-1])
        infos = [encoder.info(layer) for layer in self.layers]
        self.channels = sum(info.channels for info in infos)
        self.grid = Grid.of(encoder, infos[0].stride)

    @property
    def mask_stride(self) -> int:
        """0: a pixel's weight goes to the positions around it."""
        return 0

    def decode(
        self, scores: Tensor, image: tuple[int, int], output_size: tuple[int, int] | None = None
    ) -> Tensor:
        """Scores (B, A, h, w) at the image's size, or at another that it is shown in."""
        return self.grid.decode(scores, image, output_size or image)

    def loss(self, logits: Tensor, query_mask: Tensor) -> Tensor:
        """Cross-entropy, of each query the mean over its pixels that are not 255.

        Args:
            logits: (B, A, H, W).
            query_mask: (B, H, W) of {0, ..., A - 1, 255}.
        """
        target = query_mask.long()
        losses = F.cross_entropy(logits, target, ignore_index=IGNORED, reduction="none")
        counted = (target != IGNORED).sum((1, 2)).clamp_min(1)
        return (losses.sum((1, 2)) / counted).mean()

    def load_checkpoint(self, tensors: Mapping[str, Tensor], source: str) -> None:
        """Fill the whole model; see FewShotSegmenter.load_checkpoint.

        The published decoder is rebuilt whatever a file holds, and so is ours; the published
        annotation kernel is read from the file, so another one than the bilinear is refused.
        """
        kernel = tensors.get("anno_enc.weight")
        if kernel is not None:
            own = fixed_annotation_kernel()
            if kernel.shape != own.shape or not torch.allclose(kernel.cpu().float(), own):
                raise CheckpointError(
                    f"{source}: anno_enc.weight: expected the fixed bilinear kernel "
                    f"{tuple(own.shape)}, got another of {tuple(kernel.shape)}"
                )
        super().load_checkpoint(tensors, source)

    def shot_maps(self, images: list[Tensor]) -> list[Tensor]:
        """The maps (B, C, h, w) of K images (B, 3, H, W); equal sizes are encoded together."""
        groups: dict[torch.Size, list[int]] = {}
        for index, image in enumerate(images):
            groups.setdefault(image.shape, []).append(index)
        maps: dict[int, Tensor] = {}
        for members in groups.values():
            together = self.features(torch.cat([images[index] for index in members]))
            maps.update(zip(members, together.chunk(len(members)), strict=True))
        return [maps[index] for index in range(len(images))]

    def forward(self, images: Images, masks: Images, query: Tensor) -> Tensor:
        """The training forward: logits (B, A, H, W); arguments as in encode_support and segment.

        Gradients reach the encoder through the support too.
        """
        return self.segment(query, self.encode_support(images, masks)).logits


class GuidedLate(GuidedSegmenter):
    """Late guidance, global: features pooled under each annotation value, then compared.

    Published as cofeat-late, cofeat-late-lite and cofeat-late-lite-unshared, and, with the support
    in the query itself, as interactive-late-glob and its lite form. A mask may hold a few points
    (1 and 0, the rest 255) as well as every pixel.

    Args:
        encoder: published with "fcn_vgg16" and "fcn_vgg16_lite".
        layers: the feature maps to guide with; published: fc6.
        size: see FewShotSegmenter.
        shared: whether one head scores each annotation value for itself, background as value 0, so
            that any number of ways compete; else one head sees both values (unshared).
        average: over which shots a value's vectors are averaged: those where it is "annotated" as
            published with the shared head, or "all" as published with the other, a shot without
            the value counting as 0. None takes the published one.
        legacy_short_circuit: as published, shots after one without any annotation are not read;
            by default only that one is left out. For the shared head.
        empty_competes: as published, a way that is annotated nowhere has the zero vector for
            guidance and may win; otherwise it never does.
    """

    method = "guided-late"
    info = card(
        "guided networks, late (cofeat-late)",
        ("fcn_vgg16_lite", "fcn_vgg16"),
        "22 golden cases: dense and sparse, one and five shots, two ways, cumulative, training",
    )

    def __init__(
        self,
        encoder: Encoder,
        layers: Sequence[str] = ("fc6",),
        size: int | None = None,
        *,
        shared: bool = True,
        average: Average | None = None,
        legacy_short_circuit: bool = False,
        empty_competes: bool = True,
    ) -> None:
        super().__init__(encoder, layers, size)
        average = average or ("annotated" if shared else "all")
        if average not in get_args(Average):
            raise expected("average", f"one of {', '.join(get_args(Average))}", repr(average))
        if legacy_short_circuit and not shared:
            raise expected("legacy_short_circuit", "False without a shared head", "True")
        self.shared = shared
        self.average = average
        self.legacy_short_circuit = legacy_short_circuit
        self.empty_competes = empty_competes
        guidance = self.channels if shared else VALUES * self.channels
        hidden = self.channels + guidance
        self.head = PairHead(self.channels, guidance, hidden, 1 if shared else VALUES)
        self._memo = TensorMemo()

    def encode_support(self, images: Images, masks: Images) -> Task:
        """Turn a support set into guidance; see FewShotSegmenter.encode_support.

        The Task holds "guidance" (B, K, 2, C), the vectors of background and object in each shot,
        and "present" (B, K, 2), 1 where a value is annotated. Merging a task with that of another
        shot is the published cumulative guidance.
        """
        shots, shot_masks = shots_of(images, masks)
        sizes = [(shot.shape[2], shot.shape[3]) for shot in shots]
        return self.tasks_of(self.shot_maps(shots), sizes, shot_masks, 1)[0]

    def support_from(self, features: Sequence[Features], masks: Images) -> Task:
        """Turn encoded shots into guidance; see encode_support."""
        maps, shot_masks = encoded_shots(features, "features", masks)
        sizes = [one.size for one in features]
        task = self.tasks_of(maps, sizes, shot_masks, 1)[0]
        if all("guided" in one.maps for one in features):
            # W_g z = sum over positions of (W_g f) w: of a small map instead of the large W_g.
            maps = [map_of(one, "guided") for one in features]
            of_head = self.tasks_of(maps, sizes, shot_masks, 1)[0].tensors["guidance"]
            self._memo.put(self._sources(task), _OF_HEAD, of_head)
        return task

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        """ "features", and "query": what the head makes of them as a query's."""
        features = self.features(images)
        return {"features": features, "query": self.head.of_query(features)}

    def for_clicks(self, features: Features) -> Features:
        """With "guided", what the head makes of the map as a support's; see for_clicks of the base.

        Where that map is smaller than the weights that a click would multiply its vectors with:
        134 MB of them with 4096 channels.
        """
        own = map_of(features, "features")
        if not self.shared or own.shape[-2:].numel() >= self.channels:
            return features
        guided = self.head.of_guidance_map(own)
        return Features({**features.maps, "guided": guided}, features.size)

    def encode_ways(self, images: Images, labels: Images, ways: int) -> list[Task]:
        """Tasks of several objects that are annotated in the same images, each encoded once.

        Args:
            images: as in encode_support.
            labels: as its masks, but {0, 1, ..., ways, 255}: 0 background, n the n-th object.
            ways: how many objects.
        """
        if ways < 1:
            raise expected("ways", "a positive number", str(ways))
        shots, shot_labels = shots_of(images, labels, argument="labels")
        sizes = [(shot.shape[2], shot.shape[3]) for shot in shots]
        return self.tasks_of(self.shot_maps(shots), sizes, shot_labels, ways)

    def tasks_of(
        self,
        maps: list[Tensor],
        sizes: list[tuple[int, int]],
        labels: list[Tensor],
        ways: int,
    ) -> list[Task]:
        """One task a way, of the maps, image sizes and label maps of K shots."""
        guided = [self.guide(*shot, ways + 1) for shot in zip(maps, labels, sizes, strict=True)]
        guidance, present = (torch.stack(side, dim=1) for side in zip(*guided, strict=True))
        own = [{"guidance": [0, way], "present": [0, way]} for way in range(1, ways + 1)]
        tensors = {"guidance": guidance, "present": present}
        return [
            Task(self.method, {key: tensors[key][:, :, places] for key, places in way.items()})
            for way in own
        ]

    def guide(
        self,
        features: Tensor,  # (B, C, h, w)
        labels: Tensor,  # (B, H, W) of {0, ..., values - 1, 255}
        image: tuple[int, int],
        values: int = VALUES,
    ) -> tuple[Tensor, Tensor]:  # (B, values, C), (B, values)
        """The features pooled under each value, and whether a value is annotated at all."""
        annotations = one_hot(labels, values, torch.promote_types(features.dtype, torch.float32))
        present = annotations.amax((2, 3)).to(features.dtype)
        mass = self.grid.mass(annotations, image, (features.shape[2], features.shape[3]))
        return pooled(features, normalised_mass(mass).to(features.dtype)), present

    def segment_from(
        self,
        features: Features,
        task: Task | Sequence[Task],
        output_size: tuple[int, int] | None = None,
    ) -> Prediction:
        """Segment encoded queries; see FewShotSegmenter.segment_from.

        With a shared head the logits are the published ones for several ways too: background
        first, guided by the background of all ways' shots.
        """
        tasks = self.checked_ways(task, features.batch)
        image, of_query = features.size, map_of(features, "query")
        if not self.shared:
            pairs = self.pair_scores(of_query, tasks)
            return Prediction.from_pairs([self.decode(one, image, output_size) for one in pairs])
        logits = self.decode(self.way_scores(of_query, tasks), image, output_size)
        if not self.empty_competes:
            _, present = self.value_guidance(tasks, of_query.dtype)
            absent = (present[:, 1:] == 0)[:, :, None, None]
            logits = torch.cat([logits[:, :1], logits[:, 1:].masked_fill(absent, -torch.inf)], 1)
        return prediction_of(logits)

    def logits_grid(self, features: Features, tasks: Sequence[Task]) -> tuple[int, int] | None:
        """That of the scores, which `Grid.decode` enlarges; None where absent ways have no score.

        See FewShotSegmenter.logits_grid; only `grid_prediction` gives the scores as they are.
        """
        if self.shared and not self.empty_competes:
            return None
        height, width = map_of(features, "query").shape[-2:]
        return height, width

    def grid_prediction(self, features: Features, tasks: Sequence[Task]) -> Prediction | None:
        """The scores as they are; see FewShotSegmenter.grid_prediction."""
        if self.logits_grid(features, tasks) is None:
            return None
        of_query = map_of(features, "query")
        if not self.shared:
            return Prediction.from_pairs(self.pair_scores(of_query, tasks))
        return prediction_of(self.way_scores(of_query, tasks))

    def value_guidance(
        self, tasks: Sequence[Task], dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:  # (B, 1 + W, C), (B, 1 + W)
        """The guidance of background and ways, over all shots, and in how many each counted."""
        return self._means([self._held(task, dtype) for task in tasks])

    def _means(
        self, held: Sequence[tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:  # (B, 1 + W, D), (B, 1 + W)
        """The means of each way's vectors (B, K, 2, D) where they are present (B, K, 2)."""
        batch = max(guidance.shape[0] for guidance, _ in held)
        guidance, present = (
            torch.cat([one.expand(batch, *one.shape[1:]) for one in side], dim=1)
            for side in zip(*held, strict=True)
        )
        weights = present if self.average == "annotated" else torch.ones_like(present)
        if self.legacy_short_circuit:
            weights = weights * before_the_first_empty(present)
        means = [average_guidance(guidance[:, :, 0], weights[:, :, 0])]
        counts = [weights[:, :, 0].sum(1)]
        start = 0
        for own, _ in held:
            of_way = slice(start, start + own.shape[1])
            means.append(average_guidance(guidance[:, of_way, 1], weights[:, of_way, 1]))
            counts.append((weights * present)[:, of_way, 1].sum(1))
            start += own.shape[1]
        return torch.stack(means, dim=1), torch.stack(counts, dim=1)

    def way_scores(self, of_query: Tensor, tasks: Sequence[Task]) -> Tensor:  # (B, 1 + W, h, w)
        """The scores of background and ways, from the shared head."""
        held, of_head = [], []
        for task in tasks:
            guidance, present = self._held(task, of_query.dtype)
            held.append((guidance, present))
            kept = self._memo.get(self._sources(task), _OF_HEAD)
            if kept is not None:
                of_head.append((kept.to(guidance), present))
        if len(of_head) < len(tasks):
            return self.value_scores(of_query, self._means(held)[0])
        return self._scores(of_query, self._means(of_head)[0])

    def value_scores(
        self,
        of_query: Tensor,  # (B, 2C, h, w), of the head
        guidance: Tensor,  # (1 or B, A, C)
    ) -> Tensor:  # (B, A, h, w)
        """One score a value: the shared head on each pair of query and guidance."""
        return self._scores(of_query, self.head.of_guidance(guidance))

    def _scores(self, of_query: Tensor, of_guidance: Tensor) -> Tensor:
        hidden = of_query.unsqueeze(1) + of_guidance[:, :, :, None, None]
        return self.head.scores(hidden).squeeze(2)

    def pair_scores(self, of_query: Tensor, tasks: Sequence[Task]) -> list[Tensor]:
        """Of each task background and object score (B, 2, h, w), from one head that sees both."""
        both = []
        for task in tasks:
            guidance, present = self._held(task, of_query.dtype)
            weights = present if self.average == "annotated" else torch.ones_like(present)
            mean = average_guidance(guidance, weights)
            both.append(mean.flip(1).flatten(1))  # published: the object's vector first
        together = torch.stack([one.expand(of_query.shape[0], -1) for one in both], dim=1)
        of_guidance = self.head.of_guidance(together)[:, :, :, None, None]
        return list(self.head.scores(of_query.unsqueeze(1) + of_guidance).unbind(1))

    def _sources(self, task: Task) -> list[Tensor]:
        return [task.tensors["guidance"], self.head.fc7.weight]

    def fingerprinted(self) -> dict[str, Tensor]:
        """The encoder's entries: the head has no part in a Task."""
        return {k: t for k, t in self.state_dict().items() if k.startswith("encoder.")}

    def _held(self, task: Task, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        guidance, present = task.tensors.get("guidance"), task.tensors.get("present")
        if guidance is None or present is None or guidance.shape[2:] != (VALUES, self.channels):
            wanted = f"guidance (B, K, {VALUES}, {self.channels}) and present (B, K, {VALUES})"
            came = ", ".join(f"{key} {tuple(one.shape)}" for key, one in task.tensors.items())
            raise expected("task", wanted, came)
        return guidance.to(dtype), present.to(dtype)
