"""Early guidance: the annotation goes through the support's encoder together with the image.

Rakelly, Shelhamer, Darrell, Efros, Levine: "Conditional Networks for Few-shot Semantic
Segmentation", ICLR workshop 2018 (co-FCN), as in their guided networks, arXiv 1806.07373.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastfss.encoders import Encoder
from fastfss.encoders.fcn_vgg import FCNVGG
from fastfss.errors import expected
from fastfss.methods.features import Features, encoded_shots, map_of
from fastfss.methods.guided import GuidedSegmenter, card
from fastfss.methods.guided_parts import (
    VALUES,
    PairHead,
    annotated_image,
    average_guidance,
    early_annotation,
    one_hot,
)
from fastfss.methods.prediction import Prediction
from fastfss.methods.shots import Images, shots_of
from fastfss.task import Task
from fastfss.weights import KeyMap

EARLY_KEYS = KeyMap(
    "cofeat-early", (("qry_encoder.", "encoder."), ("supp_encoder.", "support_encoder."))
)


class GuidedEarly(GuidedSegmenter):
    """Early guidance: the annotation is stacked on the support image, before its own encoder.

    Published as cofeat-early, the co-FCN: two encoders, the support's vector is the mean of its
    map, over the positions of all shots together.

    Args:
        encoder: of the query; published with "fcn_vgg16_lite". The support's begins as a copy of
            it, with two further input channels.
        layers: the feature maps to compare; published: fc6.
        size: see FewShotSegmenter.
    """

    method = "guided-early"
    info = card(
        "guided networks, early (cofeat-early)",
        ("fcn_vgg16_lite",),
        "four golden cases: dense and sparse, one and five shots",
    )
    published_keys = EARLY_KEYS
    cheap_update = False  # the annotation goes through the support's encoder

    def __init__(
        self, encoder: Encoder, layers: Sequence[str] = ("fc6",), size: int | None = None
    ) -> None:
        super().__init__(encoder, layers, size)
        self.support_encoder = annotated_copy(encoder)
        self.head = PairHead(self.channels, self.channels, self.channels, VALUES, query_first=False)

    def encode_support(self, images: Images, masks: Images) -> Task:
        """Turn a support set into guidance; see FewShotSegmenter.encode_support.

        The Task holds "guidance" (B, K, C), the mean of each shot's map, and "positions" (B, K, 1),
        how many it has.
        """
        shots, shot_masks = shots_of(images, masks)
        return self._task(shots, shot_masks)

    def support_from(self, features: Sequence[Features], masks: Images) -> Task:
        """Turn shots into guidance; their own encoder reads the images. See encode_support."""
        return self._task(*encoded_shots(features, "image", masks))

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        """ "features", as a query, and "image": a support has an encoder of its own."""
        return {"features": self.features(images), "image": images}

    def _task(self, shots: list[Tensor], shot_masks: list[Tensor]) -> Task:
        means, counts = [], []
        for image, mask in zip(shots, shot_masks, strict=True):
            annotations = one_hot(mask, VALUES, image.dtype)
            size = (image.shape[2], image.shape[3])
            stacked = annotated_image(image, early_annotation(annotations, size))
            features: Tensor = self.support_encoder(stacked, self.layers)[self.layers[0]]
            means.append(features.mean((2, 3)))
            positions = features.shape[2] * features.shape[3]
            counts.append(features.new_full((features.shape[0], 1), positions))
        tensors = {"guidance": torch.stack(means, dim=1), "positions": torch.stack(counts, dim=1)}
        return Task(self.method, tensors)

    def segment_from(
        self,
        features: Features,
        task: Task | Sequence[Task],
        output_size: tuple[int, int] | None = None,
    ) -> Prediction:
        """Segment encoded queries; see FewShotSegmenter.segment_from."""
        tasks = self.checked_ways(task, features.batch)
        image = features.size
        of_query = self.head.of_query(map_of(features, "features"))
        guidance = torch.stack([self.guidance(one, of_query) for one in tasks], dim=1)
        of_guidance = self.head.of_guidance(guidance)[:, :, :, None, None]
        pairs = self.head.scores(of_query.unsqueeze(1) + of_guidance).unbind(1)
        return Prediction.from_pairs([self.decode(one, image, output_size) for one in pairs])

    def guidance(self, task: Task, like: Tensor) -> Tensor:
        """The mean (B, C) over the positions of all shots; `like` gives batch and dtype."""
        guidance, positions = task.tensors.get("guidance"), task.tensors.get("positions")
        if guidance is None or positions is None or guidance.shape[2:] != (self.channels,):
            wanted = f"guidance (B, K, {self.channels}) and positions (B, K, 1)"
            came = ", ".join(f"{key} {tuple(one.shape)}" for key, one in task.tensors.items())
            raise expected("task", wanted, came)
        mean = average_guidance(guidance.to(like.dtype), positions.to(like.dtype)[:, :, 0])
        return mean.expand(like.shape[0], -1)

    def fingerprinted(self) -> dict[str, Tensor]:
        """The entries of the support's encoder."""
        return {k: t for k, t in self.state_dict().items() if k.startswith("support_encoder.")}


def annotated_copy(encoder: Encoder) -> FCNVGG:
    """A copy of an encoder that takes the two channels of an annotation beside the image."""
    if not isinstance(encoder, FCNVGG):
        raise expected("encoder", "fcn_vgg16 or fcn_vgg16_lite", encoder.name)
    twin = FCNVGG(encoder.name).truncate_(encoder.features[-1].name)
    twin.load_state_dict(encoder.state_dict())
    return twin.to(next(encoder.parameters())).train(encoder.training).annotate_(VALUES)
