"""The published samplers: which images form the episodes behind a figure.

A sampler takes the *class index*, class -> list of images in the published order, and the random
generator it draws from; the global generators of Python and NumPy are left alone. It gives places
in those lists, so that drawing a protocol reads no image.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from fastfss.errors import expected

PUBLISHED_SEED = 1234  # PANet's first run; its run r takes 1234 + r. DENet's only one.

Image = TypeVar("Image", bound=Hashable)


@dataclass(frozen=True)
class Episode:
    """One episode: classes, and the places of its images in the lists of those classes.

    Attributes:
        classes: the W classes.
        supports: for every way its K places.
        queries: for every way the places of the queries that come from it, perhaps none.
        unlabelled: for every way the places of further images without masks, as PPNet uses; empty
            where none are drawn.
    """

    classes: tuple[int, ...]
    supports: tuple[tuple[int, ...], ...]
    queries: tuple[tuple[int, ...], ...]
    unlabelled: tuple[tuple[int, ...], ...] = ()


def panet_episodes(
    index: Mapping[int, Sequence[object]],
    *,
    ways: int = 1,
    shots: int = 1,
    episodes: int = 1000,
    queries: int = 1,
    unlabelled: int = 0,
    generator: random.Random | None = None,
) -> list[Episode]:
    """Draw one run of PANet's protocol; with `unlabelled`, PPNet's.

    Which way a query comes from is drawn once for the run. No image occurs twice among those of a
    way, but the same image may serve two ways.

    Args:
        index: class -> images that show it.
        ways: W.
        shots: K.
        episodes: how many to draw.
        queries: how many queries an episode has, all ways together.
        unlabelled: how many unlabelled images a way has.
        generator: published: random.Random(1234 + run), a new one for every run; default run 0.

    Returns:
        The episodes in the order drawn.

    Raises:
        ValueError: fewer classes than ways, or a class with too few images.

    Examples:
        >>> index = {6: ["a.jpg", "b.jpg"], 7: ["b.jpg", "c.jpg", "d.jpg"]}
        >>> panet_episodes(index, episodes=1)
        [Episode(classes=(7,), supports=((0,),), queries=((2,),), unlabelled=())]
    """
    check_counts(ways=ways, shots=shots, episodes=episodes, queries=queries)
    check_counts(low=0, unlabelled=unlabelled)
    classes = classes_of(index, ways)
    generator = generator or random.Random(PUBLISHED_SEED)
    origins = generator.choices(range(ways), k=queries)
    wanted = [shots + unlabelled + origins.count(way) for way in range(ways)]
    for number in classes:
        if len(index[number]) < max(wanted):
            raise too_few(number, max(wanted), len(index[number]))
    drawn = []
    for _ in range(episodes):
        chosen = generator.sample(range(len(classes)), ways)
        places = [
            generator.sample(range(len(index[classes[slot]])), count)
            for slot, count in zip(chosen, wanted, strict=True)
        ]
        further = tuple(tuple(way[shots : shots + unlabelled]) for way in places)
        drawn.append(
            Episode(
                classes=tuple(classes[slot] for slot in chosen),
                supports=tuple(tuple(way[:shots]) for way in places),
                queries=tuple(tuple(way[shots + unlabelled :]) for way in places),
                unlabelled=further if unlabelled else (),
            )
        )
    return drawn


def denet_episodes(
    index: Mapping[int, Sequence[Image]],
    *,
    ways: int = 1,
    shots: int = 1,
    episodes: int = 1000,
    whole: Mapping[int, Sequence[Image]] | None = None,
    skip_small: bool = False,
    generator: np.random.RandomState | None = None,
) -> list[Episode]:
    """Draw DENet's episodes: the same number for every class, shuffled.

    Every class comes first in its share of the episodes, episodes // classes, the last one also in
    the remainder; the query shows that class. With several ways the others are drawn for each
    episode, and the query shows none of the classes that were not drawn.

    Args:
        index: class -> the images in which it is large enough, in the index's order.
        ways: W.
        shots: K.
        episodes: how many to draw (published: 1000 for a test; to train 15000, COCO 60000).
        whole: class -> all images that show it at any size; needed for several ways.
        skip_small: skip classes whose squared number of images is below their share, as published
            for training. The list comes out shorter by their shares.
        generator: published: np.random.RandomState(1234), the default. Lists drawn one after the
            other from one generator go on in its stream, as those of one published process do.

    Returns:
        The episodes; the first way is the query's.

    Raises:
        ValueError: fewer classes than ways, no `whole` for several ways, or a class that cannot
            fill an episode (where the published sampler draws for ever).
    """
    check_counts(ways=ways, shots=shots, episodes=episodes)
    classes = classes_of(index, ways)
    if ways > 1 and whole is None:
        raise expected("whole", f"the images of every class at any size for {ways} ways", "None")
    shown: dict[Image, set[int]] = {}
    for number, images in (whole or {}).items():
        for image in images:
            shown.setdefault(image, set()).add(number)
    generator = generator or np.random.RandomState(PUBLISHED_SEED)
    drawn = []
    for number, share in _shares(classes, episodes):
        if skip_small and len(index[number]) ** 2 < share:
            continue
        if share and (distinct := len(set(index[number]))) < shots + 1:
            raise too_few(number, shots + 1, distinct)
        for _ in range(share):
            drawn.append(_denet_episode(index, number, ways, shots, shown, generator))
    generator.shuffle(drawn)  # type: ignore[arg-type]
    return drawn


def denet_images(
    index: Mapping[int, Sequence[object]],
    *,
    images: int,
    generator: np.random.RandomState | None = None,
) -> list[tuple[int, int]]:
    """Draw the list that DENet's framework trains AMP on: single images, balanced over the classes.

    Args:
        index: as in `denet_episodes`.
        images: how many to draw, with replacement.
        generator: as in `denet_episodes`.

    Returns:
        (class, place in its list) of every image, shuffled.
    """
    check_counts(images=images)
    generator = generator or np.random.RandomState(PUBLISHED_SEED)
    drawn = [
        (number, int(place))
        for number, share in _shares(classes_of(index, 1), images)
        for place in generator.randint(0, len(index[number]), share)
    ]
    generator.shuffle(drawn)
    return drawn


def _denet_episode(
    index: Mapping[int, Sequence[Image]],
    first: int,
    ways: int,
    shots: int,
    shown: Mapping[Image, set[int]],
    generator: np.random.RandomState,
) -> Episode:
    images = index[first]

    def draw() -> tuple[list[int], int]:
        return generator.randint(0, len(images), shots).tolist(), generator.randint(len(images))

    support, query = draw()
    while len({images[place] for place in (*support, query)}) < shots + 1:
        support, query = draw()
    classes, supports = [first], [support]
    if ways > 1:
        others = [number for number in sorted(index) if number != first]
        classes += generator.choice(others, ways - 1, replace=False).tolist()
        query = _redraw_query(images, query, support, classes, shown, generator)
        supports += [_distinct(index, number, shots, generator) for number in classes[1:]]
    return Episode(
        classes=tuple(classes),
        supports=tuple(tuple(way) for way in supports),
        queries=((query,), *((),) * (ways - 1)),
    )


def _redraw_query(
    images: Sequence[Image],
    query: int,
    support: list[int],
    classes: list[int],
    shown: Mapping[Image, set[int]],
    generator: np.random.RandomState,
) -> int:
    """The query, drawn again until it shows no class but `classes` and is no support."""
    taken = {images[place] for place in support}

    def fits(image: Image) -> bool:
        return image not in taken and shown.get(image, set()) <= set(classes)

    if not fits(images[query]) and not any(fits(image) for image in images):
        wanted = f"an image that shows no class but {classes} and is no support"
        raise expected(f"index[{classes[0]}]", wanted, f"none among {len(images)}")
    while not fits(images[query]):
        query = generator.randint(len(images))
    return query


def _distinct(
    index: Mapping[int, Sequence[Image]],
    number: int,
    shots: int,
    generator: np.random.RandomState,
) -> list[int]:
    images = index[number]
    while True:
        places: list[int] = generator.randint(0, len(images), shots).tolist()
        if len({images[place] for place in places}) == shots:
            return places
        # Looked at here, since a set of all images for every draw would take most of the time.
        if (distinct := len(set(images))) < shots:
            raise too_few(number, shots, distinct)


def _shares(classes: list[int], total: int) -> list[tuple[int, int]]:
    share, remainder = divmod(total, len(classes))
    return [(number, share + remainder * (number == classes[-1])) for number in classes]


def classes_of(index: Mapping[int, Sequence[object]], ways: int) -> list[int]:
    """The classes of an index, ascending; ValueError for fewer than `ways` or an empty one."""
    classes = sorted(index)
    if len(classes) < ways:
        raise expected("index", f"at least {ways} classes for {ways} ways", str(classes))
    for number in classes:
        if not len(index[number]):
            raise expected(f"index[{number}]", "at least one image", "none")
    return classes


def too_few(number: int, wanted: int, came: int) -> ValueError:
    """The error for a class that cannot fill an episode."""
    return expected(f"index[{number}]", f"at least {wanted} images for an episode", str(came))


def check_counts(low: int = 1, **counts: int) -> None:
    """ValueError, naming the argument, for a count below `low`."""
    for name, count in counts.items():
        if count < low:
            raise expected(name, f"at least {low}", str(count))
