"""The images, classes and episodes of a run, checked before it begins."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from PIL import Image
from torch.utils.data import Sampler as BatchSampler

from fastfss.data.sets import Item, MaskSet, open_set
from fastfss.errors import expected
from fastfss.protocols import (
    EpisodeList,
    LeakReport,
    Protocol,
    check_leaks,
    draw_episodes,
    fold_classes,
    get_protocol,
)
from fastfss.protocols.leaks import LeakRule
from fastfss.training.activations import ActivationMaps
from fastfss.training.episodes import ClassSplit
from fastfss.training.recipe import DataConfig, Recipe
from fastfss.training.samplers import Sampler, images_wanted, make_sampler


@dataclass(frozen=True)
class TrainingData:
    """What a run learns from and is measured on.

    Attributes:
        images, validation: the sets; may be the same.
        split: their classes.
        sampler: of the training episodes.
        held_out: class -> images of `validation` that serve to measure it.
        names: of the classes.
        activations: maps of labels, where the recipe names a folder.
        published: the episodes of a published protocol, where validation is by one.
    """

    images: MaskSet
    validation: MaskSet
    split: ClassSplit
    sampler: Sampler
    held_out: Mapping[int, tuple[int, ...]]
    names: Mapping[int, str]
    activations: ActivationMaps | None = None
    published: PublishedEpisodes | None = None


@dataclass(frozen=True)
class PublishedEpisodes:
    """A fold's episodes by a published protocol, and the set that they are of."""

    protocol: Protocol
    images: MaskSet
    episodes: EpisodeList


def prepare_data(
    recipe: Recipe, images: MaskSet | None = None, validation: MaskSet | None = None
) -> TrainingData:
    """Open the sets of a recipe and draw up its classes and episodes.

    Args:
        recipe: says what to open.
        images, validation: sets that are open already.

    Raises:
        ValueError: no root, too few classes or images; what is missing is named.
        OSError: data that is not there; of activation maps the first that is missing.
    """
    config = recipe.data
    if images is None:
        if not config.root:
            raise expected("data.root", "the folder of the data set (--data)", "none")
        images = open_set(config.set, config.root, part=config.part, **config.options)
    if validation is None:
        validation = images
        if config.set != "folder":
            root, part = config.root or images.root, config.validation_part
            validation = open_set(config.set, root, part=part, **config.options)
    split = split_classes(config, images, validation)
    names = {**validation.classes, **images.classes}
    learned, reserved = reserve_images(config, images)
    large = _index(images, config, split.base, learned, config.minimum)
    shown = _index(images, config, split.base, learned, config.query_minimum)
    wanted = images_wanted(config)
    if config.skip_rare:
        rare = {number for number, members in large.items() if len(members) < wanted}
        large = {number: members for number, members in large.items() if number not in rare}
        shown = {number: members for number, members in shown.items() if number not in rare}
    sampler = make_sampler(large, shown, config, recipe.run.seed, names)
    published, held_out = None, {}
    if recipe.validation.every and recipe.validation.protocol:
        published = _published(recipe, images, split)
    elif recipe.validation.every:
        held_out = _held_out(recipe, validation, split, reserved)
    activations = ActivationMaps(config.activations) if config.activations else None
    if activations is not None:
        for one, members in ((images, large), (validation, held_out)):
            for number, place in ((c, n) for c, numbers in members.items() for n in numbers):
                activations.path(one.items[place], number)
    return TrainingData(images, validation, split, sampler, held_out, names, activations, published)


def leaks_of(recipe: Recipe, data: TrainingData) -> LeakReport:
    """What the images that are learned from show of the held-out classes.

    Raises:
        ValueError: a held-out class is learned.
    """
    learned = {number for members in data.sampler.large.values() for number in members}
    rule: LeakRule = recipe.data.held_out
    test = data.validation if data.published is None else data.published.images
    return check_leaks(
        data.images, data.sampler.large, data.split.held_out, rule, numbers=learned, test=test
    )


def split_classes(config: DataConfig, images: MaskSet, validation: MaskSet) -> ClassSplit:
    """The classes that a fold learns from, and those that it holds out."""
    numbers = sorted(images.classes)
    if config.folds == "none":
        return ClassSplit(tuple(numbers), ())
    if config.folds == "parts":
        both = set(images.classes.values()) & set(validation.classes.values())
        if both:
            wanted = "sets whose parts have other classes"
            raise expected("data.folds", wanted, f"{sorted(both)[0]!r} in both")
        return ClassSplit(tuple(numbers), tuple(sorted(validation.classes)))
    if config.folds == "random":
        held_out = fold_classes(
            numbers, "random", config.fold, folds=config.splits, seed=config.split_seed
        )
    else:
        held_out = fold_classes(numbers, config.folds, config.fold)
    return ClassSplit(tuple(sorted(set(numbers) - set(held_out))), held_out)


def reserve_images(config: DataConfig, images: MaskSet) -> tuple[frozenset[int], frozenset[int]]:
    """The numbers of the images to learn from, and of those kept for validation."""
    numbers = list(range(len(images.items)))
    if not config.reserved:
        return frozenset(numbers), frozenset(numbers)
    random.Random(f"images {config.split_seed}").shuffle(numbers)
    count = round(config.reserved * len(numbers))
    return frozenset(numbers[count:]), frozenset(numbers[:count])


class EpisodeNumbers(BatchSampler[list[int]]):
    """The numbers of the episodes of one process, part after part.

    All processes together take the same episodes at a step, however many there are.

    Args:
        recipe: batch and parts.
        rank, count: this process, and how many there are.
        start, steps: the first step, and the step before which it ends.
    """

    def __init__(self, recipe: Recipe, rank: int, count: int, start: int, steps: int) -> None:
        self.batch, self.parts = recipe.run.batch, recipe.run.accumulate
        self.rank, self.count = rank, count
        self.start, self.steps = start, steps

    def __iter__(self) -> Iterator[list[int]]:
        size = self.batch // (self.parts * self.count)
        for step in range(self.start, self.steps):
            for part in range(self.parts):
                first = step * self.batch + (part * self.count + self.rank) * size
                yield list(range(first, first + size))

    def __len__(self) -> int:
        return (self.steps - self.start) * self.parts


def _index(
    images: MaskSet,
    config: DataConfig,
    classes: tuple[int, ...],
    allowed: frozenset[int],
    minimum: int,
) -> dict[int, list[int]]:
    index = images.index(minimum)
    found = {number: [n for n in index[number] if n in allowed] for number in classes}
    if not config.minimum_share:
        return found
    areas = {n: _area(images.items[n]) for n in {n for members in found.values() for n in members}}

    def covers(number: int, image: int) -> bool:
        return images.items[image].pixels[number] >= config.minimum_share * areas[image]

    return {number: [n for n in members if covers(number, n)] for number, members in found.items()}


def _published(recipe: Recipe, images: MaskSet, split: ClassSplit) -> PublishedEpisodes:
    config, validation = recipe.data, recipe.validation
    protocol = get_protocol(validation.protocol)
    if images.name == "folder":
        test = images
    elif images.name in protocol.part:
        root = config.root or images.root
        test = open_set(images.name, root, part=protocol.part[images.name], **config.options)
    else:
        wanted = f"a protocol for {images.name}"
        raise expected("validation.protocol", wanted, repr(protocol.name))
    episodes = draw_episodes(
        protocol,
        test,
        config.fold,
        shots=validation.shots,
        episodes=validation.episodes,
        splits=config.splits,
        split_seed=config.split_seed,
    )
    learned = sorted(
        {images.classes[c] for c in split.base} & {test.classes[c] for c in episodes.classes}
    )
    if learned:
        wanted = f"one whose fold {config.fold} tests no class that is learned"
        raise expected("validation.protocol", wanted, f"{protocol.name!r}, with {learned[0]!r}")
    return PublishedEpisodes(protocol, test, episodes)


def _area(item: Item) -> int:
    if item.size is not None:
        height, width = item.size
        return height * width
    with Image.open(item.image) as image:
        return int(image.width * image.height)


def _held_out(
    recipe: Recipe, validation: MaskSet, split: ClassSplit, reserved: frozenset[int]
) -> dict[int, tuple[int, ...]]:
    """Class -> the images that measure it, of classes with enough of them.

    Of the held-out classes; where all are learned, of those, in the reserved images.
    """
    index = validation.index(recipe.validation.minimum)
    allowed = reserved if recipe.data.reserved else frozenset(range(len(validation.items)))
    classes = split.base if recipe.data.folds == "none" else split.held_out
    least = 1 if recipe.data.sampler == "interactive" else recipe.validation.shots + 1
    members = {c: tuple(n for n in index[c] if n in allowed) for c in classes}
    enough = {c: images for c, images in members.items() if len(images) >= least}
    if not enough:
        wanted = f"a class to measure with at least {least} held-out images"
        came = f"none of {len(classes)} (validation.minimum {recipe.validation.minimum})"
        raise expected("validation", wanted, came)
    return enough
