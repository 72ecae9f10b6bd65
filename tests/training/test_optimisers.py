from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fastfss.training.optimisers import make_optimiser, rate_factor, set_rate
from fastfss.training.recipe import GroupConfig, OptimiserConfig, ScheduleConfig


def model() -> nn.Module:
    return nn.ModuleDict({"body": nn.Linear(3, 3), "aspp": nn.Linear(3, 2)})


@pytest.mark.parametrize(
    "schedule, wanted",
    [
        (ScheduleConfig(), [1, 1, 1, 1]),
        (ScheduleConfig(kind="step", at=(1 / 3, 2 / 3)), [1, 1, 0.1, 0.01]),
        (ScheduleConfig(kind="step", at=(50, 60)), [1, 1, 0.1, 0.01]),
        (ScheduleConfig(kind="poly"), [1, 0.99**0.9, 0.5**0.9, 0.01**0.9]),
        (ScheduleConfig(kind="cosine"), [1, (1 + math.cos(0.01 * math.pi)) / 2, 0.5, 0.000247]),
        (ScheduleConfig(warmup=10), [0.1, 0.19, 1, 1]),
    ],
    ids=["constant", "shares", "steps", "poly", "cosine", "warmup"],
)
def test_schedules(schedule: ScheduleConfig, wanted: list[float]) -> None:
    found = [rate_factor(schedule, step, 100) for step in (0, 1, 50, 99)]
    assert found == pytest.approx(wanted, abs=1e-6)


def test_groups_have_rates_and_decays_of_their_own() -> None:
    groups = (GroupConfig("aspp.weight", lr=10), GroupConfig("aspp.bias", lr=20, weight_decay=0.0))
    config = OptimiserConfig(lr=0.1, weight_decay=5e-4, groups=groups)
    optimiser = make_optimiser(model(), config)
    set_rate(optimiser, 0.5)
    found = [(len(g["params"]), g["lr"], g["weight_decay"]) for g in optimiser.param_groups]
    assert found == [(2, 0.05, 5e-4), (1, 0.5, 5e-4), (1, 1.0, 0.0)]


def test_a_rate_of_zero_freezes() -> None:
    module = model()
    optimiser = make_optimiser(module, OptimiserConfig(groups=(GroupConfig("body.*", lr=0),)))
    assert [p.requires_grad for p in module.parameters()] == [False, False, True, True]
    assert len(optimiser.param_groups) == 1


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "rmsprop"])
def test_optimisers_are_torchs(name: str) -> None:
    config = OptimiserConfig(name=name, lr=0.1, momentum=0.0, weight_decay=0.01)  # type: ignore[arg-type]
    ours, theirs = model(), model()
    theirs.load_state_dict(ours.state_dict())
    kinds = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW", "rmsprop": "RMSprop"}
    kind = getattr(torch.optim, kinds[name])
    wanted = kind(theirs.parameters(), lr=0.1, weight_decay=0.01)
    found = make_optimiser(ours, config)
    for _ in range(3):
        for module, optimiser in ((ours, found), (theirs, wanted)):
            optimiser.zero_grad()
            x = module["aspp"](module["body"](torch.ones(2, 3)))  # type: ignore[index]
            x.square().sum().backward()
            optimiser.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_pattern_that_fits_nothing_is_named() -> None:
    with pytest.raises(ValueError, match=r"optimiser\.groups\.pattern: .*'asp\.\*'"):
        make_optimiser(model(), OptimiserConfig(groups=(GroupConfig("asp.*"),)))


def test_nothing_to_train_is_an_error() -> None:
    with pytest.raises(ValueError, match="optimiser: expected something to train"):
        make_optimiser(model().requires_grad_(False), OptimiserConfig())
