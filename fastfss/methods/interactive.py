"""The interactive guided networks: the annotation lies on the image that is segmented.

Rakelly et al., arXiv 1806.07373. interactive-late-glob, whose guidance is pooled over the whole
image, is `GuidedLate` with the query as its own support.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastfss.encoders import Encoder
from fastfss.encoders.fcn_vgg import FCNVGG
from fastfss.errors import expected
from fastfss.methods.guided import GuidedSegmenter, card
from fastfss.methods.guided_parts import (
    VALUES,
    PairHead,
    annotated_image,
    early_annotation,
    normalised_mass,
    one_hot,
)
from fastfss.methods.prediction import Prediction
from fastfss.methods.shots import Images, shots_of
from fastfss.methods.ways import prediction_of
from fastfss.task import Task


class InteractiveLate(GuidedSegmenter):
    """Late guidance, local: at every position the features are multiplied by its annotation.

    A task is made from the query itself and serves no other image. Further shots are further
    annotations of the image; together they are its annotation, so none may repeat another's pixels.

    Args:
        encoder: published with "fcn_vgg16".
        layers: the feature maps to guide with; published: fc6.
        size: see FewShotSegmenter.
    """

    method = "interactive-late"
    info = card(
        "guided networks, late and local (interactive-late)",
        ("fcn_vgg16", "fcn_vgg16_lite"),
        "two golden cases: dense and sparse",
    )
    few_shot = False

    def __init__(
        self, encoder: Encoder, layers: Sequence[str] = ("fc6",), size: int | None = None
    ) -> None:
        super().__init__(encoder, layers, size)
        self.head = PairHead(self.channels, self.channels, 2 * self.channels, 1)

    def encode_support(self, images: Images, masks: Images) -> Task:
        """Turn annotations of the query into a Task; see FewShotSegmenter.encode_support.

        The Task holds "mass" (B, K, 2, h, w): how much of background and object falls on each
        position. Of the images nothing but the size is read.
        """
        shots, shot_masks = shots_of(images, masks)
        masses = [
            self.mass(mask, (image.shape[2], image.shape[3]), image.dtype)
            for image, mask in zip(shots, shot_masks, strict=True)
        ]
        same_image([tuple(one.shape[-2:]) for one in masses])
        return Task(self.method, {"mass": torch.stack(masses, dim=1)})

    def mass(self, mask: Tensor, image: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """(B, 2, h, w) of a mask (B, H, W)."""
        annotations = one_hot(mask, VALUES, torch.promote_types(dtype, torch.float32))
        return self.grid.mass(annotations, image, self.cells(image))

    def cells(self, image: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the feature map of an image of a size."""
        less = 1 if self.grid.fades else 0
        height, width = (-(-side // self.grid.stride) - less for side in image)
        return height, width

    def segment(
        self, query: Tensor, task: Task | Sequence[Task], output_size: tuple[int, int] | None = None
    ) -> Prediction:
        """Segment the image that the task annotates; see FewShotSegmenter.segment.

        Several ways compete, each with its own score; their backgrounds are one.
        """
        tasks = self.ways_of(query, task)
        features = self.features(query)
        weights = self.weights(tasks, features)
        # W_g (f w) = (W_g f) w, since w is one number at each position.
        guided = self.head.of_guidance_map(features).unsqueeze(1) * weights.unsqueeze(2)
        hidden = self.head.of_query(features).unsqueeze(1) + guided
        scores = self.head.scores(hidden).squeeze(2)
        return prediction_of(self.decode(scores, (query.shape[2], query.shape[3]), output_size))

    def weights(self, tasks: Sequence[Task], features: Tensor) -> Tensor:
        """w (B, 1 + W, h, w): of the background, then of each way."""
        batch, _, height, width = features.shape
        masses = []
        for task in tasks:
            mass = task.tensors.get("mass")
            if mass is None or mass.shape[2:] != (VALUES, height, width):
                wanted = f"one of the query itself, with mass (B, K, {VALUES}, {height}, {width})"
                came = ", ".join(f"{key} {tuple(one.shape)}" for key, one in task.tensors.items())
                raise expected("task", wanted, came)
            masses.append(mass.sum(dim=1).expand(batch, -1, -1, -1))
        background = torch.stack([mass[:, 0] for mass in masses]).amax(dim=0)
        together = torch.stack([background, *(mass[:, 1] for mass in masses)], dim=1)
        return normalised_mass(together).to(features.dtype)

    def fingerprinted(self) -> dict[str, Tensor]:
        """Nothing: a Task holds the annotation alone."""
        return {}


class InteractiveEarly(GuidedSegmenter):
    """Early guidance of the query by annotations of itself, stacked on it as two channels.

    Every new annotation costs a whole forward. A task is made from the query itself and serves no
    other image; further shots are further annotations of the image.

    Args:
        encoder: published with "fcn_vgg16" and "fcn_vgg16_lite"; gets two further input channels.
        layers: the feature map to classify; published: fc7.
        size: see FewShotSegmenter.
    """

    method = "interactive-early"
    info = card(
        "guided networks, early and local (interactive-early)",
        ("fcn_vgg16", "fcn_vgg16_lite"),
        "four golden cases: dense and sparse",
    )
    few_shot = False

    def __init__(
        self, encoder: Encoder, layers: Sequence[str] = ("fc7",), size: int | None = None
    ) -> None:
        if not isinstance(encoder, FCNVGG):
            raise expected("encoder", "fcn_vgg16 or fcn_vgg16_lite", encoder.name)
        super().__init__(encoder, layers, size)
        if encoder.inputs == 3:
            encoder.annotate_(VALUES)
        self.head = class_head(self.channels, VALUES)

    def encode_support(self, images: Images, masks: Images) -> Task:
        """Turn annotations of the query into a Task; see FewShotSegmenter.encode_support.

        The Task holds "annotation" (B, K, 2, H, W), uint8: background and object, widened.
        """
        shots, shot_masks = shots_of(images, masks)
        widened = [
            early_annotation(one_hot(mask, VALUES, torch.float32), (image.shape[2], image.shape[3]))
            for image, mask in zip(shots, shot_masks, strict=True)
        ]
        same_image([tuple(one.shape[-2:]) for one in widened])
        return Task(self.method, {"annotation": torch.stack(widened, dim=1).byte()})

    def segment(
        self, query: Tensor, task: Task | Sequence[Task], output_size: tuple[int, int] | None = None
    ) -> Prediction:
        """Segment the image that the task annotates; see FewShotSegmenter.segment."""
        tasks = self.ways_of(query, task)
        image = (query.shape[2], query.shape[3])
        stacked = torch.cat([annotated_image(query, self.annotation(one, query)) for one in tasks])
        scores = self.head(self.features(stacked))
        pairs = self.decode(scores, image, output_size).chunk(len(tasks))
        return Prediction.from_pairs(pairs)

    def annotation(self, task: Task, query: Tensor) -> Tensor:
        """The annotation (B, 2, H, W) of all shots together."""
        annotation = task.tensors.get("annotation")
        if annotation is None or annotation.shape[2:] != (VALUES, *query.shape[2:]):
            wanted = f"one of the query itself, {query.shape[2]} x {query.shape[3]}"
            came = ", ".join(f"{key} {tuple(one.shape)}" for key, one in task.tensors.items())
            raise expected("task", wanted, came)
        return annotation.amax(dim=1).expand(query.shape[0], -1, -1, -1)

    def fingerprinted(self) -> dict[str, Tensor]:
        """Nothing: a Task holds the annotation alone."""
        return {}


def class_head(channels: int, classes: int) -> nn.Conv2d:
    """A 1x1 convolution that begins at zero."""
    head = nn.Conv2d(channels, classes, 1)
    nn.init.zeros_(head.weight)
    assert head.bias is not None
    nn.init.zeros_(head.bias)
    return head


def same_image(sizes: Sequence[tuple[int, ...]]) -> None:
    """ValueError for shots that cannot be annotations of one image."""
    if len(set(sizes)) != 1:
        came = ", ".join(f"{height} x {width}" for height, width in sizes)
        raise expected("images", "one image in all shots, the query itself", came)
