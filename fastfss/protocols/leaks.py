"""Whether a training set shows classes that are to be novel."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, get_args

from fastfss.data.sets import MaskSet
from fastfss.errors import expected

# What becomes of a novel class's pixels in training; "absent": no image may show any.
LeakRule = Literal["background", "ignored", "absent"]


@dataclass(frozen=True)
class LeakReport:
    """What a training set shows of novel classes.

    Attributes:
        images: training images that show a novel class.
        pixels: novel class -> its pixels in training images.
        shared: test images (their names) that are training images too.
        rule: what becomes of those pixels.
    """

    images: int
    pixels: dict[int, int]
    shared: tuple[str, ...]
    rule: LeakRule

    def __str__(self) -> str:
        if not self.images and not self.shared:
            return "no training image shows a novel class"
        fate = {
            "background": "count as background, as published",
            "ignored": "count for nothing, as published",
            "absent": "are not allowed",
        }[self.rule]
        shared = f"; {len(self.shared)} test images are training images" if self.shared else ""
        return (
            f"{self.images} training images show novel classes, whose {sum(self.pixels.values())} "
            f"pixels {fate}{shared}"
        )


def check_leaks(
    train: MaskSet,
    train_classes: Collection[int],
    novel_classes: Collection[int],
    rule: LeakRule = "background",
    *,
    numbers: Collection[int] | None = None,
    test: MaskSet | None = None,
) -> LeakReport:
    """Look for novel classes in a training set.

    The published protocols keep training images that also show novel classes, as background (HSNet,
    PANet, PFENet, SSP, MLC) or ignored (DENet): see docs/protocols.md. What none of them does is to
    learn a novel class.

    Args:
        train: the images that are learned from.
        train_classes: the classes that are learned.
        novel_classes: those of the test.
        rule: what becomes of novel classes' pixels.
        numbers: the items of `train` that are used; all by default.
        test: the test images, to see whether any is learned from.

    Raises:
        ValueError: a novel class among the learned ones, or a novel pixel where the rule is
            "absent"; it is named.
    """
    if rule not in get_args(LeakRule):
        raise expected("rule", f"one of {', '.join(get_args(LeakRule))}", repr(rule))
    if both := sorted(set(train_classes) & set(novel_classes)):
        name = train.classes.get(both[0], "?")
        raise expected("train_classes", "no novel class", f"{both[0]} ({name})")
    used = range(len(train.items)) if numbers is None else sorted(numbers)
    pixels: dict[int, int] = {}
    images = 0
    for number in used:
        item = train.items[number]
        novel = {c: n for c, n in item.pixels.items() if c in novel_classes and n}
        if novel and rule == "absent":
            cls, count = next(iter(novel.items()))
            wanted = "no pixel of a novel class in training"
            raise expected("train", wanted, f"{count} of class {cls} in {item.name!r}")
        images += bool(novel)
        for cls, count in novel.items():
            pixels[cls] = pixels.get(cls, 0) + count
    shared: tuple[str, ...] = ()
    if test is not None and test.name == train.name and test is not train:
        own = {train.items[number].name for number in used}
        shared = tuple(item.name for item in test.items if item.name in own)
    return LeakReport(images, pixels, shared, rule)
