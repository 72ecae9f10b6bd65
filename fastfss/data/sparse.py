"""Episodes with a few annotated points, as the guided networks are trained with.

Rakelly et al., arXiv 1806.07373. Label maps hold 0 for background, numbers from 1 for objects, and
255 for pixels of which nothing is said. Everything random comes from a generator that the caller
gives, so that a seed decides an episode to the bit; the published code draws from the global ones.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastfss.data.masks import IGNORED
from fastfss.data.sets import MaskSet
from fastfss.errors import expected

DENSE = -1  # a count: every pixel is annotated
RANDOM_COUNTS = 100  # where no count is given, it is drawn from 0 to one less

_MARGIN = 32  # pixels of padding around an image before an object is cut out
_SMALLEST = 64  # pixels a side of a cut-out
_REACH = 64  # pixels by which a cut-out may be shifted, and grow on each side
_MEAN_COLOUR = (123, 117, 104)  # of the padding: what the networks' input takes for zero, rounded

Index = Mapping[int, Sequence[int]]  # class -> numbers of images, as MaskSet.index gives it


@dataclass(frozen=True)
class MaskItem:
    """One mask to learn from: a class, or later an object, in an image.

    Attributes:
        image: the number of the image in its set.
        cls: the class.
    """

    image: int
    cls: int


@dataclass(frozen=True, eq=False)
class SparseEpisode:
    """What one step of training sees, every image at its own size.

    Attributes:
        supports: K images, uint8 (3, H_k, W_k).
        annotations: K label maps of theirs, uint8 (H_k, W_k).
        query: uint8 (3, H, W).
        target: uint8 (H, W), the query's dense label map.
    """

    supports: tuple[Tensor, ...]
    annotations: tuple[Tensor, ...]
    query: Tensor
    target: Tensor


def sparsify(labels: Tensor, count: int | None, generator: random.Random) -> Tensor:
    """Keep a few pixels of each value, drawn uniformly; nothing is said of the others.

    Every value gets the same number of points, background too. A value with fewer pixels gets none.

    Args:
        labels: (H, W) uint8 of {0, 1, ..., 255}.
        count: points of each value; `DENSE` keeps all; None draws a number from 0 to 99. With 0 the
            annotation is empty.
        generator: what is drawn from.

    Returns:
        (H, W) uint8.

    Raises:
        ValueError: labels of another shape or dtype, or a count below -1.

    Examples:
        >>> labels = torch.tensor([[0, 0, 1], [0, 1, 255]], dtype=torch.uint8)
        >>> sparsify(labels, 1, random.Random(0))
        tensor([[255,   0, 255],
                [255,   1, 255]], dtype=torch.uint8)
    """
    _check(labels)
    if count is None:
        count = generator.randrange(RANDOM_COUNTS)
    if count < DENSE:
        raise expected("count", "a number of points, -1 for all, or None", str(count))
    if count == DENSE:
        return labels.clone()
    flat = labels.flatten()
    kept = torch.full_like(flat, IGNORED)
    for value, pixels in enumerate(torch.bincount(flat.int(), minlength=256).tolist()[:IGNORED]):
        if pixels and pixels >= count:
            drawn = torch.tensor(generator.sample(range(pixels), count), dtype=torch.int64)
            kept[torch.nonzero(flat == value)[drawn, 0]] = value
    return kept.view(labels.shape)


def one_object(labels: Tensor, generator: random.Random) -> tuple[Tensor, Tensor]:
    """Draw one of the objects of a label map, as training on video does.

    Args:
        labels: (H, W) uint8 of {0, 1, ..., 255}.
        generator: what is drawn from.

    Returns:
        The target, in which the other objects are background, and the annotation, in which nothing
        is said of them; both (H, W) uint8 of {0, 1, 255}. Without any object both are background.
    """
    _check(labels)
    counts = torch.bincount(labels.flatten().int(), minlength=256).tolist()
    objects = [value for value in range(1, IGNORED) if counts[value]]
    chosen = generator.choice(objects) if objects else 1
    return single_object(labels, chosen), single_object(labels, chosen, others=IGNORED)


def single_object(labels: Tensor, value: int, *, others: int = 0) -> Tensor:
    """A label map as the mask of one object.

    Args:
        labels: (H, W) uint8 of {0, 1, ..., 255}.
        value: the object.
        others: what the other objects become: 0, or 255 for pixels of which nothing is said.
    """
    mask = torch.where(labels == 0, 0, others).to(torch.uint8)
    mask[labels == value] = 1
    mask[labels == IGNORED] = IGNORED
    return mask


def class_of_object(labels: Tensor, region: Tensor) -> int:
    """The class of an object: the one that most of its pixels have.

    Args:
        labels: (H, W) uint8 class ids, 0 and 255 among them.
        region: (H, W) bool, the object.

    Returns:
        The class; of equals the lowest; 0 where no pixel has any.
    """
    counts = torch.bincount(labels[region].int(), minlength=256)[1:IGNORED]
    return int(counts.argmax()) + 1 if counts.any() else 0


def cut_out(image: Tensor, labels: Tensor, generator: random.Random) -> tuple[Tensor, Tensor]:
    """Cut the whole object out of an image, at random, as the support of its own image.

    The image is padded by 32 pixels of the mean colour, background in the label map. The object's
    box is enlarged to 64 pixels a side, shifted by up to 64 pixels but never off the object, then
    grown by up to 64 pixels on each side, and cut at the padded image's border, which leaves at
    least 33 pixels a side.

    Args:
        image: (3, H, W) uint8, RGB.
        labels: (H, W) uint8 of {0, 1, 255}.
        generator: what is drawn from.

    Returns:
        Image and labels of the cut.

    Raises:
        ValueError: labels of another size than the image's, or without an object.
    """
    _check(labels)
    if image.shape != (3, *labels.shape):
        wanted = f"(3, {labels.shape[0]}, {labels.shape[1]}) as the labels have"
        raise expected("image", wanted, str(tuple(image.shape)))
    inside = labels == 1
    if not inside.any():
        raise expected("labels", "an object to cut out", "none")
    height, width = (side + 2 * _MARGIN for side in labels.shape)
    padded = torch.tensor(_MEAN_COLOUR, dtype=image.dtype)[:, None, None].repeat(1, height, width)
    padded_labels = labels.new_zeros(height, width)
    middle = (slice(_MARGIN, height - _MARGIN), slice(_MARGIN, width - _MARGIN))
    padded[:, middle[0], middle[1]] = image
    padded_labels[middle] = labels
    rows, columns = (
        _interval(
            inside.any(1 - axis).nonzero().flatten() + _MARGIN, (height, width)[axis], generator
        )
        for axis in (0, 1)
    )
    return padded[:, rows, columns], padded_labels[rows, columns]


def _interval(places: Tensor, size: int, generator: random.Random) -> slice:
    """Along one axis, from the object's places to the cut."""
    first, last = int(places[0]), int(places[-1]) + 1
    missing = max(0, _SMALLEST - (last - first))
    start, stop = first - missing // 2, last + missing - missing // 2
    # How far it may move without leaving the object.
    shift = generator.randint(max(-_REACH, last - stop), min(_REACH, first - start))
    start += shift - generator.randint(0, _REACH)
    stop += shift + generator.randint(0, _REACH)
    return slice(max(0, start), min(size, stop))


def mask_items(index: Index) -> list[MaskItem]:
    """Every mask once, class by class: the queries of the published evaluation.

    Args:
        index: class -> images.
    """
    return [MaskItem(image, cls) for cls in sorted(index) for image in index[cls]]


def balanced_items(index: Index, generator: random.Random) -> list[MaskItem]:
    """The queries of a pass where classes are held out: of each as many as the smallest has.

    Args:
        index: class -> images; the classes that are trained on.
        generator: draws which.
    """
    fewest = min((len(images) for images in index.values()), default=0)
    return [
        MaskItem(image, cls)
        for cls in sorted(index)
        for image in generator.sample(list(index[cls]), fewest)
    ]


def class_episode(
    data: MaskSet,
    index: Index,
    item: MaskItem,
    generator: random.Random,
    *,
    shots: int = 1,
    count: int | None = None,
) -> SparseEpisode:
    """The class in other images: each support is any image of the class, the query too.

    Args:
        data: the set.
        index: class -> images that may be supports.
        item: the query.
        generator: what is drawn from.
        shots: supports, drawn with repetition.
        count: points of each; see `sparsify`. None draws a number for each support.
    """
    if shots < 1:
        raise expected("shots", "at least 1", str(shots))
    drawn = [generator.choice(index[item.cls]) for _ in range(shots)]
    return SparseEpisode(
        tuple(data.image(number) for number in drawn),
        tuple(sparsify(data.mask(number, item.cls), count, generator) for number in drawn),
        data.image(item.image),
        data.mask(item.image, item.cls),
    )


def object_episode(
    data: MaskSet,
    item: MaskItem,
    generator: random.Random,
    *,
    shots: int = 1,
    count: int | None = None,
) -> SparseEpisode:
    """The object itself: each support is a cut-out of the query, see `cut_out`.

    Args: as in class_episode.
    """
    if shots < 1:
        raise expected("shots", "at least 1", str(shots))
    image, target = data.image(item.image), data.mask(item.image, item.cls)
    cuts = [cut_out(image, target, generator) for _ in range(shots)]
    return SparseEpisode(
        tuple(cut for cut, _ in cuts),
        tuple(sparsify(labels, count, generator) for _, labels in cuts),
        image,
        target,
    )


def interactive_episode(
    data: MaskSet, item: MaskItem, generator: random.Random, *, count: int | None = None
) -> SparseEpisode:
    """The annotation lies on the query itself.

    Args: as in class_episode.
    """
    image, target = data.image(item.image), data.mask(item.image, item.cls)
    return SparseEpisode((image,), (sparsify(target, count, generator),), image, target)


def _check(labels: Tensor) -> None:
    if labels.ndim != 2 or labels.dtype != torch.uint8:
        came = f"{tuple(labels.shape)} {str(labels.dtype).removeprefix('torch.')}"
        raise expected("labels", "(H, W) uint8", came)
