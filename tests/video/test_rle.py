from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
from pycocotools import mask as coco

from fastfss.video.rle import (
    coco_rle,
    decode_labels,
    decode_mask,
    encode_labels,
    encode_mask,
    from_coco_rle,
)

SIZES = [(1, 1), (1, 7), (9, 1), (13, 17), (64, 33), (200, 300)]


def masks(size: tuple[int, int]) -> list[np.ndarray]:
    generator = np.random.default_rng(sum(size))
    blocks = np.kron(generator.random((-(-size[0] // 8), -(-size[1] // 8))) > 0.5, np.ones((8, 8)))
    return [
        np.zeros(size, bool),
        np.ones(size, bool),
        generator.random(size) > 0.5,
        blocks[: size[0], : size[1]] > 0,
    ]


@pytest.mark.parametrize("size", SIZES)
def test_cocos_run_lengths_are_pycocotools(size: tuple[int, int]) -> None:
    for mask in masks(size):
        wanted = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
        found = coco_rle(mask)
        assert found == {"size": list(size), "counts": wanted["counts"].decode()}
        assert np.array_equal(from_coco_rle(found), mask)
        assert np.array_equal(coco.decode(found) > 0, mask)


@pytest.mark.parametrize("size", SIZES)
def test_masks_and_label_maps_come_back(size: tuple[int, int]) -> None:
    for mask in masks(size):
        assert np.array_equal(decode_mask(encode_mask(mask), size), mask)
    labels = np.random.default_rng(0).integers(0, 256, size).astype(np.uint8)
    assert np.array_equal(decode_labels(encode_labels(labels), size), labels)


def test_uncompressed_counts_are_read() -> None:
    mask = from_coco_rle({"size": [2, 3], "counts": [1, 2, 3]})
    assert mask.tolist() == [[False, True, False], [True, False, False]]


@pytest.mark.parametrize(
    "rle",
    [
        {},
        {"size": [2, 3]},
        {"size": [2, 3], "counts": "\x7f"},
        {"size": [2, 3], "counts": ""},
        {"size": [2, 3], "counts": "0" * 9 + "o"},
        {"size": [2, 3], "counts": [1, 2]},
        {"size": [2, 3], "counts": [7, -1]},
        {"size": [0, 3], "counts": []},
        {"size": [2, 3], "counts": ["a"]},
        {"size": [2, 3], "counts": "\u20ac"},
        {"size": [2], "counts": [1]},
        [],
        None,
    ],
)
def test_what_is_no_run_length_is_refused(rle: object) -> None:
    with pytest.raises(ValueError, match="segmentation: expected"):
        from_coco_rle(rle, argument="segmentation")


@pytest.mark.parametrize("runs", [b"", b"\x80", b"\x05\x01", b"\xff" * 30, b"\x00\x09\x01\x01"])
def test_damaged_runs_are_refused(runs: bytes) -> None:
    with pytest.raises(ValueError, match="runs: expected"):
        decode_labels(runs, (2, 3))


def test_random_bytes_never_do_worse_than_a_value_error() -> None:
    generator = np.random.default_rng(3)
    for _ in range(300):
        data = generator.integers(0, 256, generator.integers(0, 12)).astype(np.uint8).tobytes()
        for decode in (decode_labels, decode_mask):
            with suppress(ValueError):
                decode(data, (2, 3))
