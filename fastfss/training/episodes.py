"""Episodes as tensors: read, transformed, batched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from fastfss.data.masks import IGNORED
from fastfss.data.resizing import resize_maps
from fastfss.data.sets import MaskSet
from fastfss.data.sparse import sparsify
from fastfss.training.activations import ActivationMaps
from fastfss.training.feature_cache import FeatureCache
from fastfss.training.recipe import DataConfig, TransformConfig
from fastfss.training.samplers import Drawn, Sampler
from fastfss.training.transforms import Transform, is_flipped


@dataclass(frozen=True)
class ClassSplit:
    """The classes of a set: those to learn from, and those of which nothing may be learned."""

    base: tuple[int, ...]
    held_out: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Batch:
    """B episodes of W ways and K shots, on one device.

    Attributes:
        support: (B, W, K, 3, H, W'), 0..255; K is 0 without supports.
        support_mask: uint8 (B, W, K, H, W') of {0, 1, 255}.
        query: (B, 3, H, W'), 0..255.
        query_mask: uint8 (B, H, W'): 0, n for the n-th way, 255.
        classes: int64 (B, W).
        backgrounds: uint8 like support_mask, 1 where a pixel is of no way; for several ways.
        support_labels, query_labels: label maps like the masks, where the recipe asks for them.
        support_activations, query_activation: float (B, W, K, h, w) and (B, h, w) in [0, 1], of the
            class's label, where the recipe names a folder of them.
        maps: of a frozen encoder, name -> (rows, C, h, w); then `support` (B, W, K, 1, 1, 1) and
            `query` (B, 1, 1, 1) hold the rows of their images.
    """

    support: Tensor
    support_mask: Tensor
    query: Tensor
    query_mask: Tensor
    classes: Tensor
    backgrounds: Tensor | None = None
    support_labels: Tensor | None = None
    query_labels: Tensor | None = None
    support_activations: Tensor | None = None
    query_activation: Tensor | None = None
    maps: dict[str, Tensor] | None = None

    def to(self, device: torch.device) -> Batch:
        """The batch on another device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The batch in memory that a GPU copies from while it computes."""
        return self._each(lambda tensor: tensor.pin_memory())

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        changed: dict[str, Any] = {}
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, dict):
                changed[one.name] = {key: change(tensor) for key, tensor in value.items()}
            elif value is not None:
                changed[one.name] = change(value)
        return replace(self, **changed)


def joined(batches: Sequence[Batch]) -> Batch:
    """One batch of several."""
    values: dict[str, Any] = {}
    for one in fields(Batch):
        parts = [getattr(batch, one.name) for batch in batches]
        if isinstance(parts[0], dict):
            values[one.name] = {k: torch.cat([part[k] for part in parts]) for k in parts[0]}
        elif parts[0] is not None:
            values[one.name] = torch.cat(parts)
    if values.get("maps"):
        rows = [len(next(iter(batch.maps.values()))) for batch in batches if batch.maps]
        before = torch.tensor([0, *rows[:-1]]).cumsum(0).to(values["support"].dtype)
        values["support"] = values["support"] + before.view(-1, 1, 1, 1, 1, 1)
        values["query"] = values["query"] + before.view(-1, 1, 1, 1)
    return Batch(**values)


@dataclass(frozen=True, eq=False)
class _Seen:
    """An image of an episode as it is trained on."""

    image: Tensor  # (3, H, W'), or with a cache its row in the episode (1, 1, 1)
    masks: Tensor  # (W, H, W'): of each way
    labels: Tensor | None  # (H, W')
    activation: Tensor | None  # (h, w)
    maps: dict[str, Tensor] | None


class EpisodeDataset(Dataset[Batch]):
    """A sampler's episodes by number, as batches of one.

    Args:
        images: the set.
        split: its classes.
        sampler: draws the episodes.
        data, transform: sections of the recipe.
        cache: of a frozen encoder's maps; then no image is read.
        activations: maps of labels.
    """

    def __init__(
        self,
        images: MaskSet,
        split: ClassSplit,
        sampler: Sampler,
        data: DataConfig,
        transform: TransformConfig,
        cache: FeatureCache | None = None,
        activations: ActivationMaps | None = None,
    ) -> None:
        self.images = images
        self.split = split
        self.sampler = sampler
        self.data = data
        self.transform = transform
        self.apply = Transform(transform)
        self.cache = cache
        self.activations = activations

    def __getitem__(self, number: int) -> Batch:
        drawn = self.sampler.draw(number)
        ways = len(drawn.classes)
        shots = len(drawn.supports[0]) if drawn.supports else 0
        places = [(way, image) for way, images in enumerate(drawn.supports) for image in images]
        query = self._see(drawn, drawn.query, len(places), is_query=True)
        if self.sampler.on_query:
            supports = [self._annotated(query, drawn, slot) for slot in range(len(places))]
        else:
            supports = [
                self._annotated(self._see(drawn, image, slot), drawn, slot)
                for slot, (_, image) in enumerate(places)
            ]
        own = [seen.masks[way] for seen, (way, _) in zip(supports, places, strict=True)]

        def stacked(tensors: Sequence[Tensor], like: Tensor) -> Tensor:  # (1, W, K, ...)
            if not tensors:
                return like.new_empty((1, ways, 0, *like.shape))
            return torch.stack(list(tensors)).view(1, ways, shots, *tensors[0].shape)

        batch = Batch(
            support=stacked([seen.image for seen in supports], query.image),
            support_mask=stacked(own, query.masks[0]),
            query=query.image[None],
            query_mask=_numbered(query.masks)[None],
            classes=torch.tensor([drawn.classes]),
        )
        if ways > 1:
            of_none = [(seen.masks != 1).all(dim=0).to(torch.uint8) for seen in supports]
            batch = replace(batch, backgrounds=stacked(of_none, query.masks[0]))
        if query.labels is not None:
            labels = [seen.labels for seen in supports if seen.labels is not None]
            of_supports = stacked(labels, query.labels)
            batch = replace(batch, support_labels=of_supports, query_labels=query.labels[None])
        if query.activation is not None:
            own = [seen.activation for seen in supports if seen.activation is not None]
            batch = replace(
                batch,
                support_activations=stacked(own, query.activation),
                query_activation=query.activation[None],
            )
        if query.maps is not None:
            served = [seen.maps for seen in (*supports, query) if seen.maps is not None]
            together = {name: torch.stack([maps[name] for maps in served]) for name in query.maps}
            batch = replace(batch, maps=together)
        return batch

    def _see(self, drawn: Drawn, image: int, slot: int, *, is_query: bool = False) -> _Seen:
        """Read an image; `slot` is its place in the episode, the query's the last."""
        planes = [self._mask(image, number, is_query) for number in drawn.classes]
        if self.data.labels != "none":
            planes.append(self._labels(image, is_query))
        stack, maps = torch.stack(planes), None
        generator = self.sampler.generator("image", drawn.number, slot)
        if self.cache is None:
            pixels, stack = self.apply(self.images.image(image), stack, generator)
        else:
            stack = resize_maps(stack, (self.transform.size,) * 2, self.transform.mask_resize)
            mirrored = is_flipped(self.transform.flip, generator)
            maps = self.cache.maps(image, mirrored=mirrored)
            stack = stack.flip(-1) if mirrored else stack
            pixels = torch.full((1, 1, 1), float(slot))
        activation = None
        if self.activations is not None:
            activation = self.activations.read(self.images.items[image], drawn.classes[0])
        ways = len(drawn.classes)
        labels = stack[-1] if len(stack) > ways else None
        return _Seen(pixels, stack[:ways], labels, activation, maps)

    def _annotated(self, seen: _Seen, drawn: Drawn, slot: int) -> _Seen:
        """An image as a support: of its masks what the recipe says is annotated."""
        points = self.data.points
        if points == "dense":
            return seen
        generator = self.sampler.generator("points", drawn.number, slot)
        count = None if points == "random" else points
        masks = torch.stack([sparsify(one, count, generator) for one in seen.masks])
        return replace(seen, masks=masks)

    def _mask(self, image: int, number: int, is_query: bool) -> Tensor:
        """uint8 (H, W) of {0, 1, 255}, with what the recipe says of other pixels."""
        mask: Tensor = self.images.mask(image, number)
        if self.data.void == "background":
            mask = mask.masked_fill(mask == IGNORED, 0)
        if is_query and self.data.held_out == "ignored" and self.data.labels == "none":
            for other in self.images.items[image].pixels.keys() & set(self.split.held_out):
                mask = mask.masked_fill(self.images.mask(image, other) == 1, IGNORED)
        return mask

    def _labels(self, image: int, is_query: bool) -> Tensor:
        """uint8 (H, W) of class ids, or of numbers among the base classes; 255 ignored."""
        table = torch.zeros(256, dtype=torch.uint8)
        for number, label in enumerate(self.split.base, start=1):
            table[label] = number if self.data.labels == "base" else label
        # The semantic branch's published quirk: what is held out is background in supports.
        ignored = is_query if self.data.labels == "base" else self.data.held_out == "ignored"
        if ignored:
            table[list(self.split.held_out)] = IGNORED
        table[IGNORED] = 0 if self.data.void == "background" else IGNORED
        return table[self.images.labels(image).long()]


def _numbered(masks: Tensor) -> Tensor:
    """Masks (W, H, W') of the ways to one (H, W'): n for the n-th way, 0 for none, 255."""
    numbers = masks[0].clone()
    for way, mask in enumerate(masks[1:], start=2):
        numbers[mask == 1] = way
        numbers[(mask == IGNORED) & (numbers == 0)] = IGNORED
    return numbers
