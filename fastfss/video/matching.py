"""What a session asks of a model: the same for label propagation and for any few-shot method."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fastfss.annotation import UNSAID
from fastfss.errors import expected
from fastfss.methods import Features, FewShotSegmenter
from fastfss.methods.frames import frame_mask, frame_size
from fastfss.methods.propagation import LabelPropagation
from fastfss.task import Task

# What the mask that was there before counts, beside a click's 1.
PRIOR_WEIGHT = 0.05
# How far around a mark that mask is not trusted, see `trust`.
_SPREAD_OF_MASK, _SPREAD_OF_FRAME = 0.5, 0.04
_MOST_MARKED = 512  # marked places that are looked at, evenly


@dataclass(frozen=True, eq=False)
class Reference:
    """An image of which the masks of some objects are known, as the model sees it.

    Attributes:
        objects: those that are known; of others nothing is said.
        made: the model's own form.
    """

    objects: tuple[int, ...]
    made: Any


@dataclass(frozen=True, eq=False)
class Seen:
    """A frame that was just segmented.

    Attributes:
        frame: its number.
        features: of the frame.
        objects: those that were looked for.
        shares: (A + 1, h, w): how much of each position is background, and each object's.
    """

    frame: int
    features: Features
    objects: tuple[int, ...]
    shares: Tensor


class Matcher(Protocol):
    """A model with what a session needs of it."""

    @property
    def model(self) -> FewShotSegmenter:
        """The model itself."""

    def encode(self, image: Tensor) -> Features:
        """The features of an image, uint8 (3, H, W)."""

    def reference(self, features: Features, masks: Mapping[int, Tensor]) -> Reference:
        """What is known of an image: object -> uint8 (H, W) of {0, 1, 255}."""

    def shares(self, features: Features, labels: Tensor, objects: Sequence[int]) -> Tensor:
        """(A + 1, h, w) of a label map (H, W), as of `follow`."""

    def follow(
        self,
        features: Features,
        references: Sequence[Reference],
        recent: Sequence[Seen],
        objects: Sequence[int],
        size: tuple[int, int],
        reach: float,
    ) -> Tensor:
        """(A + 1, h, w): background, then each object; the largest wins. Not yet of the size.

        Args:
            features: of the frame.
            references: of other images.
            recent: the frames before.
            objects: those to look for.
            size: of the frame.
            reach: of the temporal prior, see `near_the_last`.
        """

    def answer(
        self,
        features: Features,
        said: Tensor,
        prior: Tensor | None,
        references: Sequence[Reference],
        object: int,
        size: tuple[int, int],
    ) -> Tensor:
        """The probability (h, w) of one object after a click.

        Args:
            features: of the frame.
            said: uint8 (H, W) of {0, 1, 255}.
            prior: bool (H, W), the mask that was there before.
            references: of other images.
            object: which one.
            size: of the frame.
        """


def matcher_of(model: FewShotSegmenter, size: int | None) -> Matcher:
    """The matcher of a model; `size` pixels of the shorter side where its frames have any."""
    if isinstance(model, LabelPropagation):
        return PropagationMatcher(model, size)
    return TaskMatcher(model, size)


_Model = TypeVar("_Model", bound=FewShotSegmenter)


class _Encoding(Generic[_Model]):
    def __init__(self, model: _Model, size: int | None) -> None:
        self.model = model
        self.size = size

    def encode(self, image: Tensor) -> Features:
        """See Matcher.encode."""
        if self.model.frame != "aspect" or self.size is None:
            return self.model.encode(self.model.prepare(image))
        height, width = inner_size((image.shape[1], image.shape[2]), self.size)
        images = image[None]
        if (height, width) != images.shape[-2:]:
            # In uint8, which takes a quarter of the time of float and rounds like a camera; on the
            # CPU, since PyTorch has no kernel for it on a GPU.
            images = F.interpolate(images.cpu(), (height, width), mode="bilinear", antialias=True)
        dtype = next(self.model.encoder.parameters()).dtype
        floats = images.to(self.model.device).to(torch.float32).div_(255)
        prepared = self.model.encoder.normalization.apply(floats).to(dtype)
        return self.model.encode(prepared.contiguous(memory_format=torch.channels_last))


class PropagationMatcher(_Encoding[LabelPropagation]):
    """Label propagation: references far away, recent frames nearby."""

    def reference(self, features: Features, masks: Mapping[int, Tensor]) -> Reference:
        """See Matcher.reference."""
        objects = tuple(sorted(masks))
        stacked = torch.stack([masks[one] for one in objects])
        shares = torch.cat([(stacked == 0).all(0, keepdim=True), stacked == 1]).float()
        return Reference(objects, self.model.reference(features, _on_grid(features, shares)))

    def shares(self, features: Features, labels: Tensor, objects: Sequence[int]) -> Tensor:
        """See Matcher.shares."""
        numbers = torch.tensor([0, *objects], dtype=labels.dtype)
        return _on_grid(features, (labels == numbers[:, None, None]).float())

    def follow(
        self,
        features: Features,
        references: Sequence[Reference],
        recent: Sequence[Seen],
        objects: Sequence[int],
        size: tuple[int, int],
        reach: float,
    ) -> Tensor:
        """See Matcher.follow.

        Images that know the same objects are matched together; of an object, all that know it
        count alike.
        """
        weights, where, window = None, None, None
        if reach and recent:
            weights = near_the_last(recent[-1], objects, self._grid(features), reach)
            # Where no object may be there is nothing to look for, and most of a frame is that.
            possible = weights.amax(0) > 0
            where, window = possible.flatten().nonzero()[:, 0], _box(possible)
        near = _averaged(
            [
                (
                    known,
                    self.model.near(
                        features, [(one.features, one.shares) for one in members], window
                    ),
                )
                for known, members in _by_objects(recent)
            ],
            objects,
        )
        far = _averaged(
            [
                (known, self.model.far(features, [one.made for one in members], where))
                for known, members in _by_objects(references)
            ],
            objects,
        )
        found = []
        for number in objects:
            parts = [part[number] for part in (near, far) if number in part]
            if not parts:
                parts = [features.maps["features"].new_zeros(self._grid(features))]
            found.append(self.model.blend(*parts) if len(parts) == 2 else parts[0])
        stacked = torch.stack(found).float()
        if weights is not None:
            stacked *= weights
        return torch.cat([(1 - stacked.sum(0, keepdim=True)).clamp_min(0), stacked])

    def answer(
        self,
        features: Features,
        said: Tensor,
        prior: Tensor | None,
        references: Sequence[Reference],
        object: int,
        size: tuple[int, int],
    ) -> Tensor:
        """See Matcher.answer: the mask before speaks where it is trusted."""
        own = self.reference(features, {object: said}).made
        if prior is None:
            known = [self._only(one, object) for one in references if object in one.objects]
            return self.model.far(features, [own, *known])[1]
        before = _on_grid(features, torch.stack([~prior, prior]).float())
        trusted = trust(said, prior, self._grid(features)).to(before)
        evidence = self.model.reference(features, before * trusted).weighted(PRIOR_WEIGHT)
        return torch.lerp(self.model.far(features, [own, evidence])[1], before[1], trusted)

    @staticmethod
    def _only(reference: Reference, object: int) -> Any:
        place = reference.objects.index(object)
        return reference.made.weighted(PRIOR_WEIGHT).only(place + 1)

    @staticmethod
    def _grid(features: Features) -> tuple[int, int]:
        height, width = features.maps["features"].shape[-2:]
        return height, width


class TaskMatcher(_Encoding[FewShotSegmenter]):
    """Any few-shot method: a task an object, of all images that know it."""

    def reference(self, features: Features, masks: Mapping[int, Tensor]) -> Reference:
        """See Matcher.reference."""
        tasks = {
            number: self.model.fit_from([self._wide(features)], [self._framed(mask)])
            for number, mask in masks.items()
            if bool((mask == 1).any())
        }
        return Reference(tuple(sorted(tasks)), tasks)

    def shares(self, features: Features, labels: Tensor, objects: Sequence[int]) -> Tensor:
        """See Matcher.shares."""
        numbers = torch.tensor([0, *objects], dtype=labels.dtype)
        return (labels == numbers[:, None, None]).float()

    def follow(
        self,
        features: Features,
        references: Sequence[Reference],
        recent: Sequence[Seen],
        objects: Sequence[int],
        size: tuple[int, int],
        reach: float,
    ) -> Tensor:
        """See Matcher.follow; only the prior of the frame before counts."""
        known = {n: [one.made[n] for one in references if n in one.made] for n in objects}
        shown = [n for n in objects if known[n]]
        whole, region = frame_size(*size, self.model.frame, self.model.size)
        inner = features.size if self.model.frame == "aspect" else region
        maps = torch.zeros(len(objects) + 1, *inner)
        maps[0] = 0.5
        if shown:
            tasks = [self._merged(known[n]) for n in shown]
            prediction = self.model.segment_from(self._wide(features), tasks)
            if self.model.frame != "aspect" and whole != region:
                prediction = prediction.of_region(region, region)
            probabilities = prediction.probabilities[0].float().cpu()
            for number, one in zip(shown, probabilities, strict=True):
                maps[1 + list(objects).index(number)] = one
        if reach and recent:
            maps[1:] *= near_the_last(recent[-1], objects, inner, reach)
        return maps

    def answer(
        self,
        features: Features,
        said: Tensor,
        prior: Tensor | None,
        references: Sequence[Reference],
        object: int,
        size: tuple[int, int],
    ) -> Tensor:
        """See Matcher.answer: the mask before speaks where it is trusted."""
        trusted = None if prior is None else trust(said, prior, size)
        if prior is not None and trusted is not None:
            speaks = (said == UNSAID) & (trusted > 0.5)
            said = torch.where(speaks, prior.to(torch.uint8), said)
        if not bool((said == 1).any()):
            return torch.zeros(size)
        own = self.reference(features, {object: said})
        found = self.follow(features, [own, *references], [], [object], size, 0)[1]
        if prior is None or trusted is None:
            return found
        found = F.interpolate(found[None, None], size, mode="bilinear")[0, 0]
        return torch.lerp(found, prior.float(), trusted)

    def _wide(self, features: Features) -> Features:
        """In the precision of the model: features are kept in half of it."""
        return features.to(dtype=next(self.model.parameters()).dtype)

    def _framed(self, mask: Tensor) -> Tensor:
        return frame_mask(mask[None], self.model.frame, self.model.size).to(self.model.device)

    @staticmethod
    def _merged(tasks: Sequence[Task]) -> Task:
        return tasks[0] if len(tasks) == 1 else tasks[0].merge(*tasks[1:])


def trust(said: Tensor, prior: Tensor, size: tuple[int, int]) -> Tensor:  # (h, w)
    """How much a mask is still trusted after marks: not where they are, wholly far from them.

    1 - exp(-d^2 / 2 s^2), d the distance to the next mark, s the larger of a share of the root of
    the mask's area and a share of the shorter side.

    Args:
        said: (H, W), 255 where nothing is said.
        prior: bool (H, W), the mask.
        size: h and w of the result.
    """
    height, width = said.shape
    marked = F.adaptive_max_pool2d((said != UNSAID).float()[None], size)[0].nonzero().float()
    if len(marked) == 0:
        return torch.ones(size)
    step = torch.tensor([height / size[0], width / size[1]])
    marked = marked[:: max(1, len(marked) // _MOST_MARKED)]
    places = torch.cartesian_prod(torch.arange(size[0]), torch.arange(size[1])).float()
    distance = torch.cdist(places * step, marked * step).amin(dim=1).view(size)
    spread = max(
        _SPREAD_OF_MASK * math.sqrt(int(prior.sum())), _SPREAD_OF_FRAME * min(height, width)
    )
    return 1 - torch.exp(-((distance / spread) ** 2) / 2)


def near_the_last(
    last: Seen, objects: Sequence[int], size: tuple[int, int], reach: float
) -> Tensor:  # (A, h, w)
    """How much of an object may be at a position, as it was near there in the last frame.

    Twice the largest share that the object had within `reach` of the shorter side, at most 1, and 0
    below a tenth. An object that was nowhere may be anywhere.
    """
    shares = last.shares.float()
    if shares.shape[1:] != size:
        shares = F.adaptive_max_pool2d(shares, size)
    steps = max(1, round(reach * min(size)))
    near = F.max_pool2d(shares[None], (2 * steps + 1, 1), 1, (steps, 0))
    near = F.max_pool2d(near, (1, 2 * steps + 1), 1, (0, steps))[0]
    weights = near.new_ones(len(objects), *size)
    for place, number in enumerate(objects):
        if number in last.objects:
            own = (2 * near[1 + last.objects.index(number)]).clamp_max(1)
            weights[place] = torch.where(own.amax() < 1, 1.0, torch.where(own < 0.1, 0.0, own))
    return weights


def inner_size(size: tuple[int, int], shorter: int) -> tuple[int, int]:
    """Height and width with a shorter side of so many pixels, enlarged at most twice."""
    scale = min(2.0, shorter / min(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _box(where: Tensor) -> tuple[int, int, int, int]:
    """Top, left, bottom and right of the positions that are True; the whole where none is."""
    rows, columns = where.any(dim=1).nonzero()[:, 0], where.any(dim=0).nonzero()[:, 0]
    if len(rows) == 0:
        return 0, 0, where.shape[0], where.shape[1]
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def _on_grid(features: Features, shares: Tensor) -> Tensor:
    """(L, H, W) -> (L, h, w), the mean over each position."""
    maps = features.maps["features"]
    height, width = maps.shape[-2:]
    return F.adaptive_avg_pool2d(shares[None].to(maps.device), (height, width))[0]


def _by_objects(entries: Sequence[Any]) -> list[tuple[tuple[int, ...], list[Any]]]:
    groups: dict[tuple[int, ...], list[Any]] = defaultdict(list)
    for one in entries:
        groups[one.objects].append(one)
    return list(groups.items())


def _averaged(
    groups: Sequence[tuple[tuple[int, ...], Tensor]], objects: Sequence[int]
) -> dict[int, Tensor]:
    """Object -> the mean over the groups that know it of its map."""
    found: dict[int, list[Tensor]] = defaultdict(list)
    for known, maps in groups:
        for place, number in enumerate(known, start=1):
            if number in objects:
                found[number].append(maps[place])
    return {
        number: maps[0] if len(maps) == 1 else torch.stack(maps).mean(0)
        for number, maps in found.items()
    }


def check_size(size: int | None) -> None:
    """Raise ValueError for a shorter side of less than 32 pixels."""
    if size is not None and size < 32:
        raise expected("size", "at least 32 pixels or None", str(size))
