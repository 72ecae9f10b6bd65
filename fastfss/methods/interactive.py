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
from fastfss.methods.features import Features, encoded_shots, map_of
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
        sizes = [(shot.shape[2], shot.shape[3]) for shot in shots]
        return self._task(sizes, shot_masks, shots[0].dtype)

    def support_from(self, features: Sequence[Features], masks: Images) -> Task:
        """Turn annotations of an encoded query into a Task; see encode_support."""
        maps, shot_masks = encoded_shots(features, "features", masks)
        return self._task([one.size for one in features], shot_masks, maps[0].dtype)

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        """ "features", and what the head makes of them: "query" and "guided"."""
        features = self.features(images)
        guided = self.head.of_guidance_map(features)
        return {"features": features, "query": self.head.of_query(features), "guided": guided}

    def _task(
        self, sizes: Sequence[tuple[int, int]], masks: Sequence[Tensor], dtype: torch.dtype
    ) -> Task:
        masses = [self.mass(mask, size, dtype) for mask, size in zip(masks, sizes, strict=True)]
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

    def segment_from(
        self,
        features: Features,
        task: Task | Sequence[Task],
        output_size: tuple[int, int] | None = None,
    ) -> Prediction:
        """Segment the image that the task annotates; see FewShotSegmenter.segment_from.

        Several ways compete, each with its own score; their backgrounds are one.
        """
        tasks = self.checked_ways(task, features.batch)
        weights = self.weights(tasks, map_of(features, "features"))
        # W_g (f w) = (W_g f) w, since w is one number at each position.
        guided = map_of(features, "guided").unsqueeze(1) * weights.unsqueeze(2)
        hidden = map_of(features, "query").unsqueeze(1) + guided
        scores = self.head.scores(hidden).squeeze(2)
        return prediction_of(self.decode(scores, features.size, output_size))

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
    head_keys = ("head.weight",)
    few_shot = False
    cheap_update = False  # the annotation goes through the encoder

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
        return self._task([(shot.shape[2], shot.shape[3]) for shot in shots], shot_masks)

    def support_from(self, features: Sequence[Features], masks: Images) -> Task:
        """Turn annotations of a query into a Task; see encode_support."""
        _, shot_masks = encoded_shots(features, "image", masks)
        return self._task([one.size for one in features], shot_masks)

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        """The images themselves, "image": nothing is encoded without an annotation."""
        return {"image": images}

    def _task(self, sizes: Sequence[tuple[int, int]], masks: Sequence[Tensor]) -> Task:
        widened = [
            early_annotation(one_hot(mask, VALUES, torch.float32), size)
            for mask, size in zip(masks, sizes, strict=True)
        ]
        same_image([tuple(one.shape[-2:]) for one in widened])
        return Task(self.method, {"annotation": torch.stack(widened, dim=1).byte()})

    def segment_from(
        self,
        features: Features,
        task: Task | Sequence[Task],
        output_size: tuple[int, int] | None = None,
    ) -> Prediction:
        """Segment the image that the task annotates; see FewShotSegmenter.segment_from."""
        tasks = self.checked_ways(task, features.batch)
        query = map_of(features, "image")
        stacked = torch.cat([annotated_image(query, self.annotation(one, query)) for one in tasks])
        scores = self.head(self.features(stacked))
        pairs = self.decode(scores, features.size, output_size).chunk(len(tasks))
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
