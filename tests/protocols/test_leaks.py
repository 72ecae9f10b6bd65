from __future__ import annotations

import pytest

from fastfss.protocols import check_leaks
from tests.protocols.blocks import Blocks


def test_novel_pixels_are_counted_and_said_to_be_background() -> None:
    images = Blocks("pascal", 20, 60)
    report = check_leaks(images, range(6, 21), range(1, 6))
    shown = [item for item in images.items if set(item.pixels) & set(range(1, 6))]
    assert report.images == len(shown)
    assert report.pixels[3] == sum(item.pixels.get(3, 0) for item in images.items)
    assert "count as background, as published" in str(report)


def test_a_novel_class_is_never_learned() -> None:
    images = Blocks("pascal", 20, 40)
    with pytest.raises(
        ValueError, match=r"train_classes: expected no novel class, got 5 \(class 5\)"
    ):
        check_leaks(images, [5, 6, 7], [1, 2, 5])


def test_the_strict_rule_refuses_the_first_pixel() -> None:
    images = Blocks("folder", 4, 12)
    with pytest.raises(ValueError, match=r"no pixel of a novel class .* of class 1 in '0000'"):
        check_leaks(images, [2, 3, 4], [1], "absent")
    clean = [n for n, item in enumerate(images.items) if 1 not in item.pixels]
    report = check_leaks(images, [2, 3, 4], [1], "absent", numbers=clean)
    assert str(report) == "no training image shows a novel class"


def test_images_of_both_parts_are_found() -> None:
    train, test = Blocks("folder", 4, 12), Blocks("folder", 4, 5)
    report = check_leaks(train, [2, 3, 4], [1], test=test)
    assert report.shared == ("0000", "0001", "0002", "0003", "0004")
    assert "5 test images are training images" in str(report)
    assert not check_leaks(train, [2, 3, 4], [1], test=train).shared


def test_an_unknown_rule_is_named() -> None:
    with pytest.raises(ValueError, match="rule: expected one of background, ignored, absent"):
        check_leaks(Blocks("folder", 2, 4), [1], [2], "erase")  # type: ignore[arg-type]
