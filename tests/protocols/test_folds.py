from __future__ import annotations

import pytest

from fastfss.protocols import fold_classes


def test_blocks_are_pascals_and_strides_are_cocos() -> None:
    assert fold_classes(range(1, 21), "contiguous", 3) == (16, 17, 18, 19, 20)
    assert fold_classes(range(1, 81), "interleaved", 2)[:3] == (3, 7, 11)
    assert len(fold_classes(range(1, 81), "interleaved", 2)) == 20


@pytest.mark.parametrize("folds", [2, 3, 5])
def test_random_folds_hold_every_class_out_once(folds: int) -> None:
    classes = range(10, 27)
    found = [fold_classes(classes, "random", fold, folds=folds, seed=3) for fold in range(folds)]
    assert sorted(number for one in found for number in one) == list(classes)
    assert found != [fold_classes(classes, "random", f, folds=folds, seed=4) for f in range(folds)]


def test_all_has_one_fold() -> None:
    assert fold_classes([3, 1, 2], "all", 0) == (1, 2, 3)
    with pytest.raises(ValueError, match="fold: expected 0 to 0, got 1"):
        fold_classes([1, 2], "all", 1)


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match="fold: expected 0 to 3, got 4"):
        fold_classes(range(20), "contiguous", 4)
    with pytest.raises(ValueError, match="classes: expected at least 4 for 4 folds, got 3"):
        fold_classes(range(3), "random", 0)
    with pytest.raises(ValueError, match=r"rule: expected one of contiguous, .*'odd'"):
        fold_classes(range(20), "odd", 0)  # type: ignore[arg-type]
