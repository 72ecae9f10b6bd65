"""DENet: a classifier of base classes, extended by a row that the support set gives.

Liu, Cao, Liu, Guo, Chen, Tan: "Dynamic Extension Nets for Few-shot Semantic Segmentation", ACM
Multimedia 2020.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastfss.annotation import SupportMask
from fastfss.data import ImageLike
from fastfss.data.masks import IGNORED
from fastfss.encoders import Encoder
from fastfss.errors import expected
from fastfss.methods.aspp import RegASPP
from fastfss.methods.base import FewShotSegmenter
from fastfss.methods.class_rows import (
    ClassLogits,
    Labels,
    apply_rows,
    checked_labels,
    insert_rows,
    label_of,
)
from fastfss.methods.embedding import WIDTH, convolution
from fastfss.methods.features import Features, map_of, stacked_features
from fastfss.methods.info import MethodInfo, PublishedScore
from fastfss.methods.prediction import Prediction
from fastfss.methods.prototypes import upsample
from fastfss.methods.shots import Images, stacked_shots
from fastfss.methods.ways import prediction_of
from fastfss.methods.weight_estimator import GateAverage, WeightEstimator
from fastfss.task import Task
from fastfss.text import Label
from fastfss.weights import KeyMap

DENET_KEYS = KeyMap("DENet", (("backbone.", "encoder."),))
_FOCAL_WEIGHTS = (0.25, 0.75)  # of background and object pixels in loss_p

_RERUN = "COCO-20i (authors' rerun)"
SCORES = (
    PublishedScore("PASCAL-5i", "ResNet-50", 1, 60.08),
    PublishedScore("PASCAL-5i", "ResNet-50", 5, 60.46),
    PublishedScore("PASCAL-5i", "ResNet-50", 1, 52.17, ways=2),
    PublishedScore("PASCAL-5i", "ResNet-50", 5, 53.62, ways=2),
    PublishedScore("COCO-20i", "ResNet-50", 1, 42.77),
    PublishedScore("COCO-20i", "ResNet-50", 5, 43.02),
    PublishedScore("COCO-20i", "ResNet-50", 1, 38.52, ways=2),
    PublishedScore("COCO-20i", "ResNet-50", 5, 40.87, ways=2),
    PublishedScore(_RERUN, "ResNet-50", 1, 42.96, (43.14, 45.84, 42.07, 40.80)),
    PublishedScore(_RERUN, "ResNet-50", 5, 43.17, (46.46, 44.95, 40.28, 40.99)),
)


class DENet(FewShotSegmenter):
    """DENet: the support's gated masked mean is a row beside those of the base classes.

    Args:
        encoder: the backbone; published with "dilated_resnet50" and "dilated_densenet121". It is
            frozen.
        layers: the feature maps to embed; published: layer3.
        size: see FewShotSegmenter.
        classes: of the classifier, background included; 21 for PASCAL VOC, 81 for COCO.
        gate_average: over what the gate averages the masked features. "map", as published: over
            all positions, so that small objects give small numbers; "mask": over the object.
        support_free: whether the first row of each label stays in the classifier; later support
            sets of that label are then not looked at.
        class_weight: of the episode's class in the loss of all classes; the published lambda.
        stable_focal: whether the focal loss takes the logarithm of the softmax at once. The
            published code takes them one after the other, which gives infinity where a probability
            underflows.
        dropout: probability, of whole maps, of elements and of the classifier's numbers.
        batch_statistics: whether the encoder's batch norms use and track the statistics of each
            batch while training, as published; otherwise they are frozen too. The head's always do.
    """

    method = "denet"
    info = MethodInfo(
        title="DENet",
        paper="Liu, Cao, Liu, Guo, Chen, Tan: Dynamic Extension Nets for Few-shot Semantic "
        "Segmentation",
        venue="ACM MM 2020",
        arxiv="",
        encoders=("dilated_resnet50", "dilated_densenet121"),
        parity="six golden cases: forward with one and two ways, support-free, training step",
        scores=SCORES,
    )
    published_keys = DENET_KEYS
    head_keys = ("deeplab_head.", "embedding.", "estimator.")
    frame = "square"
    default_size = 321

    def __init__(
        self,
        encoder: Encoder,
        layers: Sequence[str] = ("layer3",),
        size: int | None = None,
        *,
        classes: int = 21,
        gate_average: GateAverage = "map",
        support_free: bool = False,
        class_weight: float = 1.0,
        stable_focal: bool = False,
        dropout: float = 0.5,
        batch_statistics: bool = True,
    ) -> None:
        super().__init__(encoder, layers, size)
        if classes < 2:
            raise expected("classes", "at least 2, background included", str(classes))
        if gate_average not in get_args(GateAverage):
            raise expected("gate_average", '"map" or "mask"', repr(gate_average))
        encoder.requires_grad_(False)
        encoder.batch_statistics = batch_statistics
        encoder.train(encoder.training)  # batch_statistics counts from there
        self.support_free = support_free
        self.class_weight = class_weight
        self.stable_focal = stable_focal
        channels = sum(encoder.info(layer).channels for layer in layers)
        self.embedding = nn.Sequential(
            convolution(channels, WIDTH, 2), nn.ReLU(inplace=True), nn.Dropout2d(dropout)
        )
        self.deeplab_head = DeepLabHead(WIDTH, dropout)
        self.estimator = WeightEstimator(classes, WIDTH, dropout, gate_average)

    @property
    def classes(self) -> int:
        """Of the classifier, background included."""
        return len(self.estimator.weight)

    def embed(self, images: Tensor) -> Tensor:
        """The embedded maps (B, 256, h, w) of images (B, 3, H, W), supports and queries alike."""
        return self.embed_maps(self.features(images))

    def embed_maps(self, maps: Tensor) -> Tensor:
        """The embedded maps (B, 256, h, w) of the encoder's (B, C, h, w)."""
        return cast(Tensor, self.deeplab_head(self.embedding(maps)))

    def encode_support(self, images: Images, masks: Images, labels: Labels | None = None) -> Task:
        """Turn a support set into a Task of prototypes; see FewShotSegmenter.encode_support.

        The Task holds "prototype", (B, K, 256), and, with labels, "label", (B, K).

        Args:
            images: see FewShotSegmenter; all shots of one size.
            masks: likewise.
            labels: class ids whose rows the prototypes replace, one for all or one an episode.
                Without any the new class has a row of its own after those of the classifier.
        """
        shots, shot_masks = stacked_shots(images, masks)
        return self._task(lambda: self.embed(shots.flatten(0, 1)), shot_masks, labels)

    def support_from(
        self, features: Sequence[Features], masks: Images, labels: Labels | None = None
    ) -> Task:
        """Turn encoded shots into a Task; see encode_support."""
        maps, shot_masks = stacked_features(features, ("embedded",), masks)
        return self._task(lambda: maps["embedded"], shot_masks, labels)

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        """The embedded map, "embedded"."""
        return {"embedded": self.embed(images)}

    def _task(
        self,
        embedded: Callable[[], Tensor],  # (B * K, 256, h, w); a row that is kept needs none
        masks: Tensor,  # (B, K, H, W)
        labels: Labels | None,
    ) -> Task:
        batch, count = masks.shape[:2]
        ids = checked_labels(labels, batch, self.classes, masks.device)
        if ids is None or not self.support_free or self.training:
            prototypes = self._prototypes(embedded(), masks)
        else:
            if not self.estimator.keeps(ids):
                self.estimator.keep(self._prototypes(embedded(), masks).mean(dim=1), ids)
            prototypes = self.estimator.kept(ids).unsqueeze(1).expand(-1, count, -1)
        tensors = {"prototype": prototypes}
        if ids is not None:
            tensors["label"] = ids.unsqueeze(1).expand(-1, count)
        return Task(self.method, tensors)

    def _prototypes(
        self,
        features: Tensor,  # (B * K, 256, h, w)
        masks: Tensor,  # (B, K, H, W)
    ) -> Tensor:  # (B, K, 256)
        objects = (masks == 1).flatten(0, 1).unsqueeze(1).float()
        objects = F.interpolate(objects, features.shape[2:], mode="nearest")
        rows = self.estimator.prototypes(features, objects)
        return rows.view(*masks.shape[:2], WIDTH)

    @torch.no_grad()
    def fit(
        self,
        shots: Iterable[tuple[ImageLike, SupportMask | Label]],
        *,
        name: str | None = None,
        mask_value: int | None = None,
        label: int | None = None,
    ) -> Task:
        """Make a Task from annotated images; see FewShotSegmenter.fit.

        Args:
            shots: see FewShotSegmenter.fit.
            name: likewise.
            mask_value: likewise.
            label: see encode_support.
        """
        self._warn_if_random()
        shots = list(shots)
        images, masks = self.read_shots(shots, mask_value)
        return self.named(self.encode_support(images, masks, label), self.name_of(shots, name))

    def segment_from(
        self,
        features: Features,
        task: Task | Sequence[Task],
        output_size: tuple[int, int] | None = None,
    ) -> Prediction:
        """Segment encoded queries; see FewShotSegmenter.segment_from.

        A class's background is, at every position, the largest logit of all other classes.
        """
        tasks = self.checked_ways(task, features.batch)
        scores = self.head(map_of(features, "embedded"), tasks).scores()
        return prediction_of(upsample(scores, output_size or features.size))

    def classify(self, query: Tensor, task: Task | Sequence[Task]) -> ClassLogits:
        """The published logits, of all classes, at the head's size.

        Args:
            query: (B, 3, H, W).
            task: one task, or one a way.
        """
        tasks = self.ways_of(query, task)
        return self.head(self.embed(query), tasks)

    def head(self, features: Tensor, tasks: Sequence[Task]) -> ClassLogits:
        """The extended classifiers' logits of embedded queries (B, 256, h, w)."""
        batch, width = features.shape[:2]
        rows = []
        for task in tasks:
            prototypes = task.tensors["prototype"]
            if prototypes.shape[2] != width:
                wanted = f"prototypes of {width} channels"
                raise expected("task", wanted, f"a tensor {tuple(prototypes.shape)}")
            rows.append(prototypes.to(features.dtype).mean(dim=1).expand(batch, width))
        extended, places = insert_rows(
            self.estimator.base_rows(batch),
            torch.stack(rows, dim=1),
            [label_of(task) for task in tasks],
        )
        return ClassLogits(apply_rows(extended, features), places)

    def forward(self, images: Images, masks: Images, query: Tensor, labels: Labels) -> ClassLogits:
        """The training forward, one way.

        The supports go through the encoder first, then the query: in that order the published
        batch norms see them.

        Args:
            images: supports, as in encode_support.
            masks: support masks, as in encode_support.
            query: (B, 3, H, W).
            labels: the episodes' class ids, as in encode_support.
        """
        task = self.encode_support(images, masks, labels)
        return self.head(self.embed(query), [task])

    def loss(
        self, output: ClassLogits, query_labels: Tensor, query_mask: Tensor
    ) -> dict[str, Tensor]:
        """The published losses of the logits enlarged to the labels.

        Args:
            output: of forward.
            query_labels: (B, H, W) class ids; 255 for held-out classes.
            query_mask: (B, H, W) of {0, 1, 255}: the episode's class alone.

        Returns:
            "knowledge": per image the cross-entropy over all classes, the episode's own weighted
            with `class_weight`, averaged over the batch. "pattern": the focal loss of the binary
            logits, which is only reported. "total": "knowledge".
        """
        full = upsample(output.full, (query_labels.shape[1], query_labels.shape[2]))
        binary = upsample(output.binary(), (query_mask.shape[1], query_mask.shape[2]))
        own = output.places[:, :1].unsqueeze(2)  # (B, 1, 1)
        knowledge = class_cross_entropy(full, query_labels.long(), own, self.class_weight)
        pattern = focal_loss(binary, query_mask.long(), stable=self.stable_focal)
        return {"knowledge": knowledge, "pattern": pattern, "total": knowledge}

    def settings(self) -> dict[str, str]:
        """See FewShotSegmenter; and the number of classes, on which a label depends."""
        return {**super().settings(), "classes": str(self.classes)}

    def fingerprinted(self) -> dict[str, Tensor]:
        """All but the classifier, on which prototypes do not depend; `support_free` changes it."""
        return {k: t for k, t in self.state_dict().items() if k != "estimator.weight"}


class DeepLabHead(nn.Module):
    """RegASPP, then a 3x3 convolution, batch norm and ReLU."""

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.aspp = RegASPP(channels, dropout)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(
        self,
        x: Tensor,  # (B, C, h, w)
    ) -> Tensor:  # (B, C, h, w)
        """Apply the head."""
        return cast(Tensor, self.relu(self.bn(self.conv1(self.aspp(x)))))


def class_cross_entropy(
    logits: Tensor,  # (B, C, H, W)
    labels: Tensor,  # (B, H, W) int64
    own: Tensor,  # (B, 1, 1) int64
    weight: float,
) -> Tensor:
    """Per image the weighted mean over the pixels that are not 255; then the batch's mean.

    Pixels of an image's `own` class count `weight` times.
    """
    losses = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none")
    weights = torch.where(labels == own, weight, 1.0) * (labels != IGNORED)
    return ((weights * losses).sum((1, 2)) / weights.sum((1, 2))).mean()


def focal_loss(
    logits: Tensor,  # (B, 2, H, W)
    masks: Tensor,  # (B, H, W) int64 of {0, 1, 255}
    *,
    stable: bool,
) -> Tensor:
    """-(1 - q)^2 log q of each pixel's own class, 0.25 for background and 0.75 for object pixels;
    the weighted mean over those that are not 255.
    """
    valid = masks != IGNORED
    targets = torch.where(valid, masks, 0).unsqueeze(1)
    own = logits.softmax(dim=1).gather(1, targets)
    log = logits.log_softmax(dim=1).gather(1, targets) if stable else own.log()
    losses = torch.where(valid, (-((1 - own) ** 2) * log).squeeze(1), 0)
    weights = torch.where(masks == 1, _FOCAL_WEIGHTS[1], _FOCAL_WEIGHTS[0]) * valid
    return (weights * losses).sum() / weights.sum()
