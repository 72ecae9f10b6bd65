"""HSNet's samplers, which DCAMA, IMR-HSNet and most later methods use.

Min, Kang, Cho, ICCV 2021. As in `episodes`, a sampler gives places in the lists of a class index.
Supports are drawn one at a time and may repeat each other; none is the query.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from fastfss.errors import expected
from fastfss.protocols.episodes import Episode, Image, check_counts, classes_of, too_few

PUBLISHED_SEED = 0


def hsnet_listed_episodes(
    index: Mapping[int, Sequence[Image]],
    listed: Sequence[tuple[int, int]],
    *,
    shots: int = 1,
    episodes: int = 1000,
    generator: np.random.RandomState | None = None,
) -> list[Episode]:
    """Draw the episodes of PASCAL-5i: the listed queries in order, from the start again at the end.

    Args:
        index: class -> the images that show it, in the list's order.
        listed: (class, place in its list) of each line of the published list.
        shots: K.
        episodes: how many to draw.
        generator: published: np.random.RandomState(0), the default.

    Raises:
        ValueError: an empty list, an entry that is not in the index, or a class whose only image is
            the query.

    Examples:
        >>> index = {6: ["a.jpg", "b.jpg"]}
        >>> hsnet_listed_episodes(index, [(6, 0), (6, 1)], episodes=1)
        [Episode(classes=(6,), supports=((1,),), queries=((0,),), unlabelled=())]
    """
    check_counts(shots=shots, episodes=episodes)
    if not listed:
        raise expected("listed", "at least one query", "none")
    for number, place in listed:
        if number not in index or not 0 <= place < len(index[number]):
            raise expected("listed", "classes and places of the index", f"({number}, {place})")
    queries = (listed[turn % len(listed)] for turn in range(episodes))
    return _with_supports(index, queries, shots, generator or _published())


def hsnet_drawn_episodes(
    index: Mapping[int, Sequence[Image]],
    *,
    shots: int = 1,
    episodes: int = 1000,
    generator: np.random.RandomState | None = None,
) -> list[Episode]:
    """Draw the episodes of COCO-20i: a class of the fold, one of its images, then the supports.

    Args:
        index: class of the fold -> the images that show it, in the published order.
        shots: as in `hsnet_listed_episodes`.
        episodes: likewise.
        generator: likewise.

    Raises:
        ValueError: no class, or one with a single image.
    """
    check_counts(shots=shots, episodes=episodes)
    generator = generator or _published()
    classes = classes_of(index, 1)

    def queries() -> Iterable[tuple[int, int]]:
        for _ in range(episodes):
            number = classes[_choice(len(classes), generator)]
            yield number, _choice(len(index[number]), generator)

    return _with_supports(index, queries(), shots, generator)


def fss1000_episodes(
    index: Mapping[int, Sequence[Image]],
    numbers: Mapping[int, Sequence[int]],
    *,
    shots: int = 1,
    generator: np.random.RandomState | None = None,
) -> list[Episode]:
    """Draw FSS-1000's episodes: every image is the query once.

    Supports are drawn by their numbers, 1 to 10 as the files are called, in that order; queries
    come as the files' names are sorted: 1, 10, 2 and so on.

    Args:
        index: class -> its images, as their names are sorted.
        numbers: class -> the images' numbers, in the same order.
        shots: as in `hsnet_listed_episodes`.
        generator: likewise.

    Raises:
        ValueError: no class, or one with a single image.
    """
    check_counts(shots=shots)
    generator = generator or _published()
    drawn = []
    for number in classes_of(index, 1):
        if len(index[number]) < 2:
            raise too_few(number, 2, len(index[number]))
        by_number = sorted(range(len(index[number])), key=numbers[number].__getitem__)
        for query in range(len(index[number])):
            support: list[int] = []
            while len(support) < shots:
                place = by_number[_choice(len(by_number), generator)]
                if place != query:
                    support.append(place)
            drawn.append(Episode((number,), (tuple(support),), ((query,),)))
    return drawn


def _with_supports(
    index: Mapping[int, Sequence[Image]],
    queries: Iterable[tuple[int, int]],
    shots: int,
    generator: np.random.RandomState,
) -> list[Episode]:
    drawn = []
    for number, query in queries:
        images = index[number]
        if all(image == images[query] for image in images):
            raise too_few(number, 2, 1)
        support: list[int] = []
        while len(support) < shots:
            place = _choice(len(images), generator)
            if images[place] != images[query]:
                support.append(place)
        drawn.append(Episode((number,), (tuple(support),), ((query,),)))
    return drawn


def _choice(count: int, generator: np.random.RandomState) -> int:
    """One place; draws a whole permutation, as the published call does."""
    return int(generator.choice(count, 1, replace=False)[0])


def _published() -> np.random.RandomState:
    return np.random.RandomState(PUBLISHED_SEED)
