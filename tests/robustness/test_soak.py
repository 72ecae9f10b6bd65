from __future__ import annotations

import os

import pytest

from tests.robustness.soak import growth, resident


def test_growth_compares_the_last_third_with_the_middle() -> None:
    assert growth([900, 100, 100, 100, 110, 110]) == pytest.approx(0.1)
    assert growth([5, 100, 94]) == pytest.approx(-0.06)
    with pytest.raises(ValueError, match="at least 3"):
        growth([1, 2])


def test_the_memory_of_this_process_is_read() -> None:
    assert 20 < resident(os.getpid()) < 1e5
