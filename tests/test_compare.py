"""The benchmarks' own arithmetic."""

from __future__ import annotations

import time

import pytest
import torch

from bench.compare import Caches, Comparison, compare


def test_the_ratio_is_the_median_of_the_rounds_ratios() -> None:
    measured = Comparison({"a": [10.0, 20.0, 90.0], "b": [1.0, 4.0, 10.0]})
    assert measured.ratio("a", "b") == 9.0
    assert measured.median("a") == 20.0
    assert measured.as_dict() == {"a_ms": 20e3, "b_ms": 4e3}


@pytest.mark.parametrize(("caches", "round_of"), [("cold", "ab"), ("warm", "aabb")])
def test_functions_take_turns(caches: Caches, round_of: str) -> None:
    called: list[str] = []
    functions = {"a": lambda: called.append("a"), "b": lambda: called.append("b")}
    before = torch.get_num_threads()
    measured = compare(functions, seconds=0, min_rounds=3, threads=before + 1, caches=caches)
    assert "".join(called) == "ab" + 3 * round_of
    assert [len(times) for times in measured.rounds.values()] == [3, 3]
    assert torch.get_num_threads() == before


def test_long_calls_are_not_warmed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.compare.WARMED", 0.05)
    called: list[str] = []

    def long() -> None:
        called.append("long")
        until = time.process_time() + 0.06
        while time.process_time() < until:
            pass

    functions = {"long": long, "short": lambda: called.append("short")}
    compare(functions, seconds=0, min_rounds=2, caches="warm")
    assert called == ["long", "short", *2 * ["long", "short", "short"]]
