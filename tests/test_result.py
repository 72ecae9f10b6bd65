from __future__ import annotations

import dataclasses
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from fastfss.data import read_mask
from fastfss.data.palette import way_colours
from fastfss.errors import MissingExtraError
from fastfss.result import Result

LABELS = np.zeros((40, 60), dtype=np.uint8)
LABELS[5:20, 5:25] = 1
LABELS[10:35, 30:55] = 2


def make_mask(way: int) -> np.ndarray:
    return np.equal(LABELS, way)


def make_result(**changes) -> Result:
    scores = np.stack([make_mask(way) for way in (1, 2)]).astype(np.float32)
    fields = {
        "labels": LABELS,
        "scores": scores,
        "confidence": (0.9, 0.25),
        "names": ("cow", "dog"),
    }
    return Result(**{**fields, **changes})


def wide_result(ways: int = 300) -> Result:
    labels = np.arange(ways + 1, dtype=np.uint16)[None].repeat(2, axis=0)
    return Result(
        labels=labels,
        scores=np.zeros((ways, 2, ways + 1), dtype=np.float32),
        confidence=(0.5,) * ways,
        names=tuple(map(str, range(ways))),
    )


def test_mask_and_area_pick_one_way():
    result = make_result()
    np.testing.assert_array_equal(result.mask(), LABELS == 1)
    np.testing.assert_array_equal(result.mask(2), LABELS == 2)
    assert result.mask().dtype == np.bool_
    assert (result.area(1), result.area(2)) == (300, 625)


@pytest.mark.parametrize("way", [0, 3, -1])
def test_way_that_is_not_there_is_an_error(way):
    for method in ("mask", "area", "rle"):
        with pytest.raises(ValueError, match=rf"^way: expected 1\.\.2, got {way}$"):
            getattr(make_result(), method)(way)


def test_way_of_another_kind_is_a_type_error():
    with pytest.raises(TypeError, match="way: expected an integer, got 'cow'"):
        make_result().mask("cow")


def test_result_is_frozen_and_prints_in_one_line():
    result = make_result()
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.names = ("a", "b")
    assert repr(result) == "Result(40 x 60: 'cow' 0.90 on 12.5%, 'dog' 0.25 on 26.0%)"


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"labels": LABELS.tolist()},
            TypeError,
            "labels: expected a uint8 or uint16 array, got list",
        ),
        (
            {"labels": LABELS.astype(np.int64)},
            TypeError,
            "labels: expected uint8 or uint16, got int64",
        ),
        (
            {"labels": LABELS[None]},
            ValueError,
            r"labels: expected 2 dimensions, none empty, got \(1, 40, 60\)",
        ),
        ({"labels": LABELS[:0]}, ValueError, r"labels: .*, got \(0, 60\)"),
        ({"labels": LABELS + 1}, ValueError, r"labels: expected labels 0\.\.2, got 3"),
        ({"scores": np.zeros((2, 40, 60))}, TypeError, "scores: expected float32, got float64"),
        (
            {"scores": torch.zeros(2, 40, 60)},
            TypeError,
            "scores: expected a float32 array, got Tensor",
        ),
        (
            {"scores": np.zeros((2, 60, 40), np.float32)},
            ValueError,
            r"scores: expected \(N, 40, 60\) as labels has, got \(2, 60, 40\)",
        ),
        (
            {"scores": np.full((2, 40, 60), np.nan, np.float32)},
            ValueError,
            r"scores: expected values in 0\.\.1, got nan",
        ),
        (
            {"scores": np.full((2, 40, 60), 1.5, np.float32)},
            ValueError,
            r"scores: expected values in 0\.\.1, got 1\.5",
        ),
        ({"confidence": (0.5,)}, ValueError, "confidence: expected 2 entries, one a way, got 1"),
        (
            {"confidence": (0.5, 2.0)},
            ValueError,
            r"confidence: expected values in 0\.\.1, got \(0\.5, 2\.0\)",
        ),
        ({"confidence": (0.5, float("nan"))}, ValueError, "confidence: expected values"),
        ({"confidence": [0.5, 0.5]}, TypeError, r"confidence: expected a tuple of float, got \[0"),
        ({"names": ("cow",)}, ValueError, "names: expected 2 entries, one a way, got 1"),
        ({"names": (1, 2)}, TypeError, "names: expected a tuple of str, got"),
    ],
)
def test_fields_that_do_not_fit_are_errors(changes, error, message):
    with pytest.raises(error, match=message):
        make_result(**changes)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:pycocotools")
def test_rle_decodes_to_the_mask_and_is_json():
    coco = pytest.importorskip("pycocotools.mask")
    rle = make_result().rle(2)
    assert rle["size"] == [40, 60]
    assert isinstance(rle["counts"], str)
    assert int(coco.area(rle)) == 625
    np.testing.assert_array_equal(coco.decode(rle), LABELS == 2)


def test_rle_without_pycocotools_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    monkeypatch.delitem(sys.modules, "pycocotools.mask", raising=False)
    with pytest.raises(
        MissingExtraError, match=r'Result\.rle\(\) needs pycocotools: pip install "fas'
    ):
        make_result().rle()


def test_saved_mask_is_a_palette_png_of_labels_with_the_ways_colours(tmp_path):
    path = tmp_path / "labels.png"
    make_result().save_mask(path)
    with Image.open(path) as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image), LABELS)
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), way_colours(2)[LABELS])
    np.testing.assert_array_equal(read_mask(path, value=2).numpy(), LABELS == 2)
    assert list(tmp_path.iterdir()) == [path]


def test_saved_mask_keeps_labels_above_255(tmp_path):
    result = wide_result()
    result.save_mask(str(tmp_path / "labels.png"))
    with Image.open(tmp_path / "labels.png") as image:
        np.testing.assert_array_equal(np.asarray(image), result.labels)


def test_mask_is_only_saved_as_png(tmp_path):
    with pytest.raises(ValueError, match=r"expected a \.png file, which keeps labels exact"):
        make_result().save_mask(tmp_path / "labels.jpg")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [(40, 60), (400, 600), (1, 1), (1, 900), (3, 2)], ids=str)
def test_overlay_keeps_the_size_and_the_background(size):
    labels = np.asarray(Image.fromarray(LABELS).resize(size[::-1], Image.Resampling.NEAREST))
    result = make_result(labels=labels, scores=np.zeros((2, *size), np.float32))
    photo = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    drawn = np.asarray(result.overlay(photo))
    assert drawn.shape == photo.shape
    far = np.ones(size, dtype=bool)
    for y, x in np.argwhere(labels > 0):
        far[max(0, y - 3) : y + 4, max(0, x - 3) : x + 4] = False
    np.testing.assert_array_equal(drawn[far], photo[far])


def test_overlay_takes_every_form_of_the_query(tmp_path):
    photo = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    path = tmp_path / "query.png"
    Image.fromarray(photo).save(path)
    expected = np.asarray(make_result().overlay(photo))
    for source in (path, Image.fromarray(photo), torch.from_numpy(photo).permute(2, 0, 1)):
        np.testing.assert_array_equal(np.asarray(make_result().overlay(source)), expected)


def test_overlay_of_another_image_is_an_error_with_both_sizes():
    with pytest.raises(
        ValueError, match="image: expected 40 rows x 60 columns as the result has, got 60 rows x 40"
    ):
        make_result().overlay(np.zeros((60, 40, 3), np.uint8))


def test_overlay_does_not_change_the_image_it_is_given():
    photo = torch.full((3, 40, 60), 100, dtype=torch.uint8)
    make_result().overlay(photo)
    assert torch.equal(photo, torch.full((3, 40, 60), 100, dtype=torch.uint8))


@pytest.mark.parametrize(
    "colour",
    [(0, 0, 0), (255, 255, 255), (128, 128, 128), (40, 120, 40), *map(tuple, way_colours(2)[1:])],
    ids=str,
)
def test_contour_stands_out_on_a_photo_of_any_colour(colour):
    photo = np.full((40, 60, 3), colour, dtype=np.uint8)
    drawn = np.asarray(make_result().overlay(photo)).astype(int)
    inside, outside = drawn[5, 15], drawn[4, 15]
    assert inside.tolist() == way_colours(1)[1].tolist()
    assert outside.tolist() == [0, 0, 0]
    contrast = [np.abs(pixel - photo[0, 0]).max() for pixel in (inside, outside)]
    assert max(contrast) > 100


def test_ways_have_their_own_colours_and_a_contour_between_them():
    labels = np.ones((40, 60), dtype=np.uint8)
    labels[:, 30:] = 2
    drawn = np.asarray(make_result(labels=labels).overlay(np.zeros((40, 60, 3), np.uint8)))
    colours = way_colours(2)
    np.testing.assert_array_equal(drawn[10, 29], colours[1])
    np.testing.assert_array_equal(drawn[10, 30], colours[2])
    np.testing.assert_array_equal(drawn[10, 5], np.rint(0.4 * colours[1]))
    # The image's own border is no boundary.
    np.testing.assert_array_equal(drawn[0, 0], np.rint(0.4 * colours[1]))


def test_contour_grows_with_the_image():
    def width(scale: int) -> int:
        labels = LABELS.repeat(scale, axis=0).repeat(scale, axis=1)
        result = make_result(labels=labels, scores=np.zeros((2, *labels.shape), np.float32))
        drawn = np.asarray(result.overlay(np.full((*labels.shape, 3), 255, np.uint8)))
        return int((drawn[12 * scale, : 5 * scale] == 0).all(axis=1).sum())

    assert [width(1), width(10), width(20)] == [1, 2, 3]


def test_overlay_draws_more_than_255_ways():
    result = wide_result()
    drawn = np.asarray(result.overlay(np.zeros((2, 301, 3), np.uint8)))
    np.testing.assert_array_equal(drawn[0, 300], way_colours(300)[300])


def test_from_probabilities_takes_tensors_of_a_method():
    probabilities = torch.zeros(2, 4, 5, dtype=torch.bfloat16)
    probabilities[0, :2] = 0.75
    probabilities[1, 3] = 1
    labels = torch.zeros(4, 5, dtype=torch.int64)
    labels[:2], labels[3] = 1, 2
    result = Result.from_probabilities(probabilities, labels, names=["cow", "dog"], seconds=0.5)
    assert result.labels.dtype == np.uint8
    np.testing.assert_array_equal(result.labels, labels.numpy())
    np.testing.assert_array_equal(result.scores, probabilities.float().numpy())
    assert result.confidence == (0.75, 1.0)
    assert (result.names, result.seconds) == (("cow", "dog"), 0.5)


def test_confidence_falls_with_probability_outside_the_mask():
    probabilities = torch.tensor([[[1.0, 0.5, 0.0, 0.0]]])
    labels = torch.tensor([[1, 0, 0, 0]])
    result = Result.from_probabilities(probabilities, labels, names=["cow"])
    assert result.confidence == pytest.approx((1 / 1.5,))


def test_way_that_is_nowhere_has_no_confidence():
    for probability in (0.0, 0.4):
        result = Result.from_probabilities(
            torch.full((1, 3, 4), probability), torch.zeros(3, 4, dtype=torch.long), names=["cow"]
        )
        assert result.confidence == (0.0,)


def test_from_probabilities_keeps_labels_above_255():
    labels = torch.arange(301).view(7, 43)
    result = Result.from_probabilities(torch.zeros(300, 7, 43), labels, names=["x"] * 300)
    assert result.labels.dtype == np.uint16
    np.testing.assert_array_equal(result.labels, labels.numpy())
