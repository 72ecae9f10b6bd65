"""The published optimisers, parameter groups and schedules."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from fastfss.errors import expected
from fastfss.training.recipe import GroupConfig, OptimiserConfig, ScheduleConfig


def make_optimiser(model: nn.Module, config: OptimiserConfig) -> torch.optim.Optimizer:
    """The optimiser of everything that is trained.

    Args:
        model: parameters of groups with lr = 0 are frozen.
        config: [optimiser] of the recipe.

    Raises:
        ValueError: a group's pattern that fits no parameter, or nothing to train.
    """
    groups: dict[GroupConfig, list[nn.Parameter]] = {group: [] for group in config.groups}
    rest: list[nn.Parameter] = []
    found: set[str] = set()
    for name, parameter in model.named_parameters():
        group = next((g for g in config.groups if fnmatch.fnmatch(name, g.pattern)), None)
        if group is not None:
            found.add(group.pattern)
            parameter.requires_grad_(parameter.requires_grad and group.lr > 0)
        if parameter.requires_grad:
            (rest if group is None else groups[group]).append(parameter)
    for group in config.groups:
        if group.pattern not in found:
            wanted = "a pattern of parameters that are there"
            raise expected("optimiser.groups.pattern", wanted, repr(group.pattern))
    made: list[dict[str, Any]] = [{"params": rest, "lr": config.lr}]
    for group, parameters in groups.items():
        decay = config.weight_decay if group.weight_decay is None else group.weight_decay
        made.append({"params": parameters, "lr": config.lr * group.lr, "weight_decay": decay})
    made = [group for group in made if group["params"]]
    if not made:
        raise expected("optimiser", "something to train", "a model that is frozen altogether")
    for one in made:
        one["base_lr"] = one["lr"]
    return _optimiser(made, config)


def _optimiser(groups: Iterable[dict[str, Any]], config: OptimiserConfig) -> torch.optim.Optimizer:
    lr, decay = config.lr, config.weight_decay
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr, config.momentum, 0, decay, config.nesterov)
    if config.name == "rmsprop":
        momentum = config.momentum
        return torch.optim.RMSprop(groups, lr, weight_decay=decay, momentum=momentum)
    kind = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    return kind(groups, lr, config.betas, weight_decay=decay)


def rate_factor(config: ScheduleConfig, step: int, steps: int) -> float:
    """What the learning rate is multiplied with at a step, 0 and up, of a run of `steps`.

    Examples:
        >>> schedule = ScheduleConfig(kind="step", at=(0.5, 80), factor=0.1)
        >>> [rate_factor(schedule, step, 100) for step in (49, 50, 80)]
        [1.0, 0.1, 0.010000000000000002]
    """
    if step < config.warmup:
        start = config.warmup_from
        return start + (1 - start) * step / config.warmup
    if config.kind == "step":
        marks = [int(mark * steps) if mark < 1 else int(mark) for mark in config.at]
        return float(config.factor ** sum(step >= mark for mark in marks))
    if config.kind == "poly":
        return float((1 - step / steps) ** config.power)
    if config.kind == "cosine":
        return (1 + math.cos(math.pi * step / steps)) / 2
    return 1.0


def set_rate(optimiser: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's learning rate to its base times the factor."""
    for group in optimiser.param_groups:
        group["lr"] = group["base_lr"] * factor
