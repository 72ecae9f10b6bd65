"""How a protocol brings images and masks to a method, and its scores back."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastfss.data.letterbox import letterbox_image, letterbox_labels
from fastfss.data.masks import IGNORED
from fastfss.data.resizing import resize_image, resize_maps
from fastfss.data.sets import MaskSet
from fastfss.errors import expected
from fastfss.methods import FewShotSegmenter
from fastfss.methods.frames import frame_image, frame_mask, frame_size
from fastfss.protocols.episode_lists import ListedEpisode
from fastfss.protocols.protocol import Protocol


@dataclass(frozen=True, eq=False)
class ReadEpisode:
    """An episode as tensors, a batch of one; `joined` makes one of several.

    Attributes:
        images: of each way its K supports (1, 3, h, w), normalised.
        masks: of each way its K masks (1, h, w) of {0, 1, 255}.
        backgrounds: like masks, 1 where no class of the episode is: PANet's.
        query: (1, 3, h, w), normalised.
        truth: (1, H, W) of {0, 1..W, 255} at the size at which scores are counted.
    """

    images: list[list[Tensor]]
    masks: list[list[Tensor]]
    backgrounds: list[list[Tensor]]
    query: Tensor
    truth: Tensor

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shapes that episodes of a batch share: of query and supports."""
        return (self.query.shape, *(one.shape for way in self.images for one in way))


def joined(episodes: Sequence[ReadEpisode]) -> ReadEpisode:
    """Episodes of equal shapes as one batch; its truth is the first one's."""
    if len(episodes) == 1:
        return episodes[0]

    def together(lists: Sequence[list[list[Tensor]]]) -> list[list[Tensor]]:
        return [
            [torch.cat(same) for same in zip(*way, strict=True)] for way in zip(*lists, strict=True)
        ]

    return ReadEpisode(
        together([one.images for one in episodes]),
        together([one.masks for one in episodes]),
        together([one.backgrounds for one in episodes]),
        torch.cat([one.query for one in episodes]),
        episodes[0].truth,
    )


class Reader:
    """Reads episodes of a set for a method as a protocol has it.

    Args:
        protocol: how.
        images: the set.
        model: for its size, frame and normalisation.

    Raises:
        ValueError: a protocol that needs the method's size, of a method without one.
    """

    def __init__(self, protocol: Protocol, images: MaskSet, model: FewShotSegmenter) -> None:
        self.protocol, self.images, self.model = protocol, images, model
        own = model.size if isinstance(model.size, int) else None
        self.size = protocol.size or own
        if protocol.reading in ("square", "letterbox") and self.size is None:
            wanted = f"pixels of a side (--size) for the protocol {protocol.name!r}"
            raise expected("size", wanted, "none")
        self._flips = random.Random(0)

    def read(self, episode: ListedEpisode) -> ReadEpisode:
        """One episode; with the protocol's flips, in the list's order."""
        images, masks, backgrounds = [], [], []
        for number, members in zip(episode.classes, episode.supports, strict=True):
            shots = [self._support(member, number, episode.classes) for member in members]
            images.append([shot[0] for shot in shots])
            masks.append([shot[1] for shot in shots])
            backgrounds.append([shot[2] for shot in shots])
        image = self.images.image(episode.query)
        truth = self._truth(episode)
        flip = self._flip()
        query = self._image(image)
        if not self.protocol.score_original:
            truth = self._small(truth)
        if flip:
            query, truth = query.flip(-1), truth.flip(-1)
        return ReadEpisode(images, masks, backgrounds, query, truth.to(self.model.device))

    def skip(self, episode: ListedEpisode) -> None:
        """Leave an episode to another process, but draw what it would have drawn."""
        for _ in range(sum(map(len, episode.supports)) + 1):
            self._flip()

    def labels(self, episode: ReadEpisode, predicted: Tensor) -> Tensor:
        """The logits (1, N, h, w) of a query as labels (1, H, W) of the truth's size."""
        logits, (height, width) = predicted, episode.truth.shape[-2:]
        if self.protocol.reading == "letterbox":
            # Published: stretched to a square of the longer side, the frame's rounding included.
            longer = max(height, width)
            logits = _enlarged(logits, (longer, longer))
            return logits.argmax(dim=1)[:, :height, :width]
        if self.protocol.reading == "method":
            whole, region = frame_size(height, width, self.model.frame, self.model.size)
            if region != whole:
                logits = logits[..., : region[0], : region[1]]
                logits = F.interpolate(logits, (height, width), mode="bilinear")
                return logits.argmax(dim=1)
        return _enlarged(logits, (height, width)).argmax(dim=1)

    def _support(
        self, member: int, number: int, classes: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        mask = self.images.mask(member, number)
        known = torch.stack([self.images.mask(member, one) == 1 for one in classes]).any(dim=0)
        background = (~known).to(torch.uint8)
        if self.protocol.void_support != IGNORED:
            mask = torch.where(mask == IGNORED, self.protocol.void_support, mask)
        image, small, rest = (
            self._image(self.images.image(member)),
            self._small_support(mask[None]),
            self._small_support(background[None]),
        )
        if self._flip():
            image, small, rest = image.flip(-1), small.flip(-1), rest.flip(-1)
        device = self.model.device
        return image, small.to(device), rest.to(device)

    def _truth(self, episode: ListedEpisode) -> Tensor:
        """(1, H, W): 0, the number of the way, or 255."""
        truth: Tensor | None = None
        for way, number in enumerate(episode.classes, start=1):
            mask = self.images.mask(episode.query, number)
            if truth is None:
                truth = torch.where(mask == IGNORED, self.protocol.void_query, 0).to(torch.uint8)
            truth[mask == 1] = way
        assert truth is not None
        return truth[None]

    def _flip(self) -> bool:
        return self.protocol.flips and self._flips.random() < 0.5

    def _image(self, image: Tensor) -> Tensor:
        """uint8 (3, H, W) to (1, 3, h, w), normalised."""
        protocol, size = self.protocol, self.size
        if protocol.reading == "square" and size is not None:
            pixels = resize_image(image, (size, size))[None].float() / 255
        else:
            pixels = image[None].float() / 255
            if protocol.reading == "letterbox" and size is not None:
                pixels = letterbox_image(pixels, size)
            elif protocol.reading == "method":
                pixels = frame_image(pixels, self.model.frame, self.model.size)
        encoder = self.model.encoder
        dtype = next(encoder.parameters()).dtype
        return encoder.normalization.apply(pixels.to(self.model.device)).to(dtype)

    def _small_support(self, mask: Tensor) -> Tensor:
        if self.protocol.reading == "method":
            return frame_mask(mask, self.model.frame, self.model.size)
        return self._small(mask)

    def _small(self, mask: Tensor) -> Tensor:
        """A mask (1, H, W) at the size of the images that the method sees."""
        size = self.size
        if size is None or self.protocol.reading in ("original", "method"):
            return mask
        if self.protocol.reading == "letterbox":
            return letterbox_labels(mask, size)
        return resize_maps(mask, (size, size), self.protocol.mask_resize)


def _enlarged(logits: Tensor, size: tuple[int, int]) -> Tensor:
    if logits.shape[-2:] == size:
        return logits
    return F.interpolate(logits, size, mode="bilinear", align_corners=True)
