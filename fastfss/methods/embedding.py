"""What CANet and PGNet share, as lizhaoliu-Lec/DENet (ACM MM 2020) implements both."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from fastfss.data.masks import IGNORED
from fastfss.encoders import Encoder
from fastfss.errors import expected
from fastfss.methods.features import Features, map_of
from fastfss.methods.prediction import Prediction
from fastfss.methods.prototypes import upsample
from fastfss.methods.shots import Images
from fastfss.methods.stacked import StackedSegmenter
from fastfss.methods.ways import merge_ways
from fastfss.task import Task

WIDTH = 256  # channels of the embedding and of the head


def convolution(inputs: int, outputs: int, rate: int = 1) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size."""
    return nn.Conv2d(inputs, outputs, 3, padding=rate, dilation=rate)


def two_convolutions(inputs: int = WIDTH) -> nn.Sequential:
    """conv3x3, ReLU, conv3x3."""
    return nn.Sequential(
        convolution(inputs, WIDTH), nn.ReLU(inplace=True), convolution(WIDTH, WIDTH)
    )


class EmbeddingSegmenter(StackedSegmenter):
    """A frozen encoder, an embedding of its maps, and a head that gives each task two logits.

    Args:
        encoder: the backbone; its parameters are frozen.
        layers: the maps to embed, concatenated.
        size: see FewShotSegmenter.
        dropout: probability, of whole maps behind the embedding and where the head says.
        batch_statistics: whether the encoder's batch norms use and track the statistics of each
            batch while training, as published; otherwise they are frozen too.
    """

    frame = "square"
    default_size = 321

    def __init__(
        self,
        encoder: Encoder,
        layers: Sequence[str],
        size: int | None,
        *,
        dropout: float,
        batch_statistics: bool,
    ) -> None:
        super().__init__(encoder, layers, size)
        encoder.requires_grad_(False)
        encoder.batch_statistics = batch_statistics
        encoder.train(encoder.training)  # batch_statistics counts from there
        channels = sum(encoder.info(layer).channels for layer in layers)
        self.embedding = nn.Sequential(
            convolution(channels, WIDTH, 2), nn.ReLU(inplace=True), nn.Dropout2d(dropout)
        )

    @property
    def map_names(self) -> Sequence[str]:
        """See StackedSegmenter."""
        return ("embedded",)

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        """The embedded map, "embedded"."""
        return {"embedded": self.embed(images)}

    def embed(self, images: Tensor) -> Tensor:
        """The embedded maps (B, 256, h, w) of images (B, 3, H, W)."""
        return cast(Tensor, self.embedding(self.features(images)))

    @abstractmethod
    def head(self, features: Tensor, tasks: Sequence[Task]) -> Tensor:
        """Logits (B, W, 2, h, w), each way for itself, of embedded queries (B, 256, h, w)."""

    def segment_from(
        self,
        features: Features,
        task: Task | Sequence[Task],
        output_size: tuple[int, int] | None = None,
    ) -> Prediction:
        """Segment encoded queries; see FewShotSegmenter. Several ways: see merge_ways."""
        tasks = self.checked_ways(task, features.batch)
        pairs = self.head(map_of(features, "embedded"), tasks)
        size = output_size or features.size
        return merge_ways(upsample(pairs.flatten(0, 1), size).unflatten(0, pairs.shape[:2]))

    def forward(self, images: Images, masks: Images, query: Tensor) -> Tensor:
        """The training forward: logits (B, 2, h, w) of the head's size.

        The query goes through the encoder first, then all supports together: in that order the
        published batch norms see them.

        Args:
            images: supports, as in encode_support.
            masks: support masks, as in encode_support.
            query: (B, 3, H, W).
        """
        features = self.embed(query)
        return self.head(features, [self.encode_support(images, masks)])[:, 0]

    def loss(self, logits: Tensor, query_mask: Tensor) -> Tensor:
        """Cross-entropy, mean over the pixels that are not 255.

        Args:
            logits: (B, 2, h, w), enlarged to the mask.
            query_mask: (B, H, W).
        """
        size = (query_mask.shape[1], query_mask.shape[2])
        return F.cross_entropy(upsample(logits, size), query_mask.long(), ignore_index=IGNORED)

    def support_tensor(self, task: Task, key: str, like: Tensor) -> Tensor:
        """A task's tensor (B, K, ..., 256) for queries `like`, in their batch and dtype.

        Raises:
            ValueError: a tensor of another width.
        """
        tensor = task.tensors[key]
        if tensor.shape[-1] != like.shape[1]:
            wanted = f"{key} of {like.shape[1]} channels"
            raise expected("task", wanted, f"a tensor {tuple(tensor.shape)}")
        return tensor.to(like.dtype).expand(like.shape[0], *tensor.shape[1:])
