"""Which images form the episodes of a training run.

An episode depends on the seed and its own number alone: not on the episodes before it, on loader
processes or on how many processes train. So a sampler's state is the number of the next episode.
"""

from __future__ import annotations

import hashlib
import json
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np

from fastfss.errors import expected
from fastfss.protocols import denet_episodes, denet_images
from fastfss.training.recipe import DataConfig

Index = Mapping[int, Sequence[int]]  # class -> numbers of images


@dataclass(frozen=True)
class Drawn:
    """The images of one episode, by their numbers in the set.

    Attributes:
        number: of the episode.
        classes: the W classes.
        supports: for every way its K images; empty for the sampler "single".
        query: the query; shows the first class or, of several ways, any one of them.
    """

    number: int
    classes: tuple[int, ...]
    supports: tuple[tuple[int, ...], ...]
    query: int


class Sampler(ABC):
    """Episodes by their number.

    Args:
        large: class -> images in which it is large enough to be learned from.
        shown: class -> images that may be its query.
        config: [data] of the recipe.
        seed: of the draws.

    Attributes:
        length: the episodes of a pass over the data.
        on_query: whether the query is its own support, in which only annotations differ.
    """

    length: int
    on_query: ClassVar[bool] = False

    def __init__(self, large: Index, shown: Index, config: DataConfig, seed: int) -> None:
        self.large = {number: tuple(large[number]) for number in sorted(large)}
        self.config = config
        self.seed = seed
        # In the classes' order, which is that of the published "sorted".
        self.classes_of: dict[int, list[int]] = {}
        for number in sorted(shown):
            for image in shown[number]:
                self.classes_of.setdefault(image, []).append(number)
        if not self.large:
            raise expected("data", "at least one class to train on", "none")
        if len(self.large) < config.ways:
            wanted = f"at least {config.ways} classes for {config.ways} ways"
            raise expected("data.ways", wanted, f"{len(self.large)} classes")

    @abstractmethod
    def _draw(self, number: int, generator: random.Random) -> Drawn: ...

    def draw(self, number: int) -> Drawn:
        """The episode of this number, 0 and up."""
        return self._draw(number, self.generator("episode", number))

    def generator(self, *purpose: object) -> random.Random:
        """What is drawn from for one purpose; Python's seeding by text is the same everywhere."""
        return random.Random(" ".join(map(str, (self.seed, *purpose))))

    @property
    def digest(self) -> str:
        """sha256 over what decides the episodes."""
        content = [
            type(self).__name__,
            self.seed,
            self.config.shots,
            self.config.ways,
            sorted(self.large.items()),
            sorted(self.classes_of.items()),
        ]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def _supports(self, number: int, query: int, generator: random.Random) -> tuple[int, ...]:
        """K images of a class without repetition, none of them the query."""
        images, shots = self.large[number], self.config.shots
        drawn = generator.sample(images, min(shots + 1, len(images)))
        return tuple([image for image in drawn if image != query][:shots])

    def _in_turn(self, number: int) -> int:
        """Place in the list of the number-th episode, each pass in an order of its own."""
        epoch, place = divmod(number, self.length)
        return _order(self.seed, epoch, self.length)[place]


class _QueryFirst(Sampler):
    """The query, then one of the classes that it shows; supports without repetition."""

    def __init__(self, large: Index, shown: Index, config: DataConfig, seed: int) -> None:
        super().__init__(large, shown, config, seed)
        kept = {image for images in self.large.values() for image in images}
        self.queries = sorted(kept)
        self.length = len(self.queries)

    def _of_query(self, number: int, query: int, generator: random.Random) -> Drawn:
        chosen = generator.choice(self.classes_of[query])
        return Drawn(number, (chosen,), (self._supports(chosen, query, generator),), query)


class QuerySampler(_QueryFirst):
    """SSP, MLC: the query uniformly among all images that show a large object."""

    def _draw(self, number: int, generator: random.Random) -> Drawn:
        return self._of_query(number, generator.choice(self.queries), generator)


class ImagesSampler(_QueryFirst):
    """PFENet: every image once a pass."""

    def _draw(self, number: int, generator: random.Random) -> Drawn:
        return self._of_query(number, self.queries[self._in_turn(number)], generator)


class PairsSampler(Sampler):
    """HSNet, DCAMA: every pair of image and class once a pass; shots may repeat each other."""

    def __init__(self, large: Index, shown: Index, config: DataConfig, seed: int) -> None:
        super().__init__(large, shown, config, seed)
        self.pairs = [(image, number) for number, images in self.large.items() for image in images]
        self.length = len(self.pairs)

    def _draw(self, number: int, generator: random.Random) -> Drawn:
        query, chosen = self.pairs[self._in_turn(number)]
        supports: list[int] = []
        while len(supports) < self.config.shots:
            image = generator.choice(self.large[chosen])
            if image != query:
                supports.append(image)
        return Drawn(number, (chosen,), (tuple(supports),), query)


class ClassSampler(Sampler):
    """PANet, PPNet; HSNet on COCO: the classes, then images of each without repetition.

    Which way the query comes from is drawn once for the run, as published.
    """

    def __init__(self, large: Index, shown: Index, config: DataConfig, seed: int) -> None:
        super().__init__(large, shown, config, seed)
        self.origin = self.generator("origin").randrange(config.ways)
        self.length = len({image for images in self.large.values() for image in images})

    def _draw(self, number: int, generator: random.Random) -> Drawn:
        classes = generator.sample(list(self.large), self.config.ways)
        supports, query = [], -1
        for way, chosen in enumerate(classes):
            count = self.config.shots + (way == self.origin)
            images = generator.sample(self.large[chosen], count)
            supports.append(tuple(images[: self.config.shots]))
            if way == self.origin:
                query = images[-1]
        return Drawn(number, tuple(classes), tuple(supports), query)


class BalancedSampler(Sampler):
    """DENet, CANet, PGNet: a list with equally many episodes a class, drawn once."""

    def __init__(self, large: Index, shown: Index, config: DataConfig, seed: int) -> None:
        super().__init__(large, shown, config, seed)
        self.drawn = denet_episodes(
            self.large,
            shots=config.shots,
            episodes=config.episodes,
            skip_small=True,
            generator=np.random.RandomState(seed),
        )
        if not self.drawn:
            most = max(map(len, self.large.values())) ** 2 * len(self.large)
            wanted = f"at most {most}: no class has images for its share (their number squared)"
            raise expected("data.episodes", wanted, str(config.episodes))
        self.length = len(self.drawn)

    def _draw(self, number: int, generator: random.Random) -> Drawn:
        episode = self.drawn[self._in_turn(number)]
        images = self.large[episode.classes[0]]
        supports = tuple(images[place] for place in episode.supports[0])
        return Drawn(number, episode.classes[:1], (supports,), images[episode.queries[0][0]])


class EqualSampler(Sampler):
    """Guided networks: of every class as many pairs of image and class as the rarest has, each once
    a pass; supports may repeat each other and, as published, be the query.
    """

    def __init__(self, large: Index, shown: Index, config: DataConfig, seed: int) -> None:
        super().__init__(large, shown, config, seed)
        fewest = min(map(len, self.large.values()))
        self.pairs = [
            (image, number)
            for number, images in self.large.items()
            for image in self.generator("equal", number).sample(images, fewest)
        ]
        self.length = len(self.pairs)

    def _draw(self, number: int, generator: random.Random) -> Drawn:
        query, chosen = self.pairs[self._in_turn(number)]
        supports = generator.choices(self.large[chosen], k=self.config.shots)
        return Drawn(number, (chosen,), (tuple(supports),), query)


class InteractiveSampler(PairsSampler):
    """Interactive networks: every pair of image and class once a pass, annotated on the query."""

    on_query = True

    def _draw(self, number: int, generator: random.Random) -> Drawn:
        query, chosen = self.pairs[self._in_turn(number)]
        return Drawn(number, (chosen,), ((query,) * self.config.shots,), query)


class SingleSampler(Sampler):
    """AMP: single images without supports, equally many a class, drawn once."""

    def __init__(self, large: Index, shown: Index, config: DataConfig, seed: int) -> None:
        super().__init__(large, shown, config, seed)
        generator = np.random.RandomState(seed)
        self.drawn = denet_images(self.large, images=config.episodes, generator=generator)
        self.length = len(self.drawn)

    def _draw(self, number: int, generator: random.Random) -> Drawn:
        chosen, place = self.drawn[self._in_turn(number)]
        return Drawn(number, (chosen,), (), self.large[chosen][place])


_SAMPLERS: dict[str, Callable[[Index, Index, DataConfig, int], Sampler]] = {
    "query": QuerySampler,
    "images": ImagesSampler,
    "pairs": PairsSampler,
    "class": ClassSampler,
    "balanced": BalancedSampler,
    "equal": EqualSampler,
    "single": SingleSampler,
    "interactive": InteractiveSampler,
}


def make_sampler(
    large: Index, shown: Index, config: DataConfig, seed: int, names: Mapping[int, str]
) -> Sampler:
    """The sampler that a recipe names.

    Args:
        large, shown, config, seed: see Sampler.
        names: of the classes, for messages.

    Raises:
        ValueError: a class with too few images for an episode; the published samplers would draw
            for ever.
    """
    wanted = images_wanted(config)
    for number, images in large.items():
        if len(images) < wanted:
            few = f"at least {wanted} images for an episode of {config.shots} shots"
            hint = "(data.skip_rare = true leaves it out)"
            raise expected(f"class {names[number]!r}", f"{few} {hint}", str(len(images)))
    return _SAMPLERS[config.sampler](large, shown, config, seed)


def images_wanted(config: DataConfig) -> int:
    """How many images a class needs for an episode."""
    return 1 if config.sampler in ("single", "interactive") else config.shots + 1


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, length: int) -> list[int]:
    order = list(range(length))
    random.Random(f"{seed} order {epoch}").shuffle(order)
    return order
