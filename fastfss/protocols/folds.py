"""Which classes a fold tests on, and which it may learn from."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Literal, get_args

from fastfss.errors import expected

FoldRule = Literal["contiguous", "interleaved", "random", "all"]


def fold_classes(
    classes: Iterable[int], rule: FoldRule, fold: int, *, folds: int = 4, seed: int = 0
) -> tuple[int, ...]:
    """The novel classes of a fold; the others are its base classes.

    Args:
        classes: all class ids.
        rule: "contiguous": blocks in ascending order (PASCAL-5i; COCO-20i as PANet, MLC and SSP
            have it). "interleaved": every folds-th class (COCO-20i as HSNet and DENet have it).
            "random": shuffled with `seed`, then dealt out: leave-classes-out for sets without
            published folds. "all": every class is novel; there is one fold.
        fold: which, from 0.
        folds: how many there are.
        seed: of "random".

    Raises:
        ValueError: an unknown rule, no such fold, or fewer classes than folds.

    Examples:
        >>> fold_classes(range(1, 21), "contiguous", 1)
        (6, 7, 8, 9, 10)
        >>> fold_classes(range(1, 81), "interleaved", 0)[:3]
        (1, 5, 9)
    """
    numbers = sorted(classes)
    if rule not in get_args(FoldRule):
        raise expected("rule", f"one of {', '.join(get_args(FoldRule))}", repr(rule))
    count = 1 if rule == "all" else folds
    if not 0 <= fold < count:
        raise expected("fold", f"0 to {count - 1}", str(fold))
    if len(numbers) < count:
        raise expected("classes", f"at least {count} for {count} folds", str(len(numbers)))
    if rule == "contiguous":
        size = len(numbers) // count
        return tuple(numbers[fold * size : (fold + 1) * size])
    if rule == "random":
        random.Random(f"classes {seed}").shuffle(numbers)
    return tuple(sorted(numbers[fold::count]))
