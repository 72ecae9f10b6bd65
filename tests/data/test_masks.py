from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from PIL import Image

from fastfss.data import read_label_map, read_mask

OBJECT = np.zeros((6, 8), dtype=bool)
OBJECT[1:4, 2:7] = True


def labelled(**labels: int) -> np.ndarray:
    """A label map: the object's rectangle, one corner pixel of another label, one more row."""
    array = np.zeros((6, 8), dtype=np.uint8)
    array[OBJECT] = labels.get("object", 0)
    array[0, 0] = labels.get("corner", 0)
    array[5] = labels.get("row", 0)
    return array


def palette_image(indices: np.ndarray) -> Image.Image:
    image = Image.fromarray(indices).convert("P")
    image.putdata(indices.ravel().tolist())
    # All entries white: only the indices tell the labels apart.
    image.putpalette([255] * 768)
    return image


def assert_object(mask: torch.Tensor, expected: np.ndarray = OBJECT) -> None:
    assert mask.dtype == torch.uint8
    np.testing.assert_array_equal(mask.numpy(), expected)


@pytest.mark.parametrize(
    "source",
    [
        Image.fromarray(OBJECT),
        Image.fromarray(labelled(object=1)),
        Image.fromarray(labelled(object=255)),
        Image.fromarray(labelled(object=38)),
        palette_image(labelled(object=1)),
        palette_image(labelled(object=255)),
        Image.fromarray(labelled(object=255)).convert("RGB"),
        Image.fromarray(np.dstack([OBJECT * 200, OBJECT * 0, OBJECT * 30]).astype(np.uint8)),
        Image.fromarray(OBJECT.astype(np.uint16) * 65535),
        Image.fromarray(OBJECT.astype(np.int32)),
        Image.fromarray(OBJECT.astype(np.float32)),
        OBJECT,
        OBJECT[None],
        OBJECT[:, :, None],
        OBJECT.astype(np.int64),
        OBJECT.astype(np.float64),
        OBJECT.astype(np.float32) * 255,
        OBJECT.astype(np.uint64),
        np.asfortranarray(OBJECT),
        np.dstack([OBJECT] * 3).astype(np.uint8) * 255,
        torch.from_numpy(OBJECT),
        torch.from_numpy(OBJECT)[None],
        torch.from_numpy(OBJECT).long(),
        torch.from_numpy(OBJECT).bfloat16(),
        torch.from_numpy(OBJECT).float().expand(3, -1, -1),
    ],
    ids=lambda source: (
        f"PIL-{source.mode}" if isinstance(source, Image.Image) else f"{source.dtype}{source.shape}"
    ),
)
def test_one_object_is_found_in_every_form(source):
    assert_object(read_mask(source, size=(6, 8)))


@pytest.mark.parametrize(
    ("mode", "suffix"), [("1", "png"), ("L", "png"), ("P", "png"), ("1", "tif"), ("P", "gif")]
)
def test_mask_file_is_read(tmp_path, mode, suffix):
    path = tmp_path / f"mask.{suffix}"
    image = {
        "1": Image.fromarray(OBJECT),
        "L": Image.fromarray(labelled(object=255)),
        "P": palette_image(labelled(object=1)),
    }[mode]
    image.save(path)
    assert_object(read_mask(path, size=(6, 8)))


def test_palette_is_read_as_indices_not_colours(tmp_path):
    path = tmp_path / "labels.png"
    palette_image(labelled(object=3, corner=9)).save(path)
    assert_object(read_mask(path, value=3))
    corner = np.zeros((6, 8))
    corner[0, 0] = 1
    assert_object(read_mask(path, value=9), corner)


def test_palette_with_alpha_is_read_as_indices():
    image = palette_image(labelled(object=2))
    image.putpalette([0] * 768)
    image.putalpha(128)
    assert image.mode == "PA"
    assert_object(read_mask(image))


def test_0_255_means_object_and_255_beside_another_label_means_ignore():
    assert_object(read_mask(labelled(object=255)))
    expected = OBJECT.astype(np.uint8)
    expected[5] = 255
    assert_object(read_mask(labelled(object=1, row=255)), expected)
    assert_object(read_mask(labelled(object=7, row=255)), expected)


def test_whole_image_as_object_is_accepted():
    for value in (1, 255, True, 1.0):
        assert_object(read_mask(np.full((6, 8), value)), np.ones((6, 8)))


def test_reading_a_read_mask_changes_nothing():
    once = read_mask(labelled(object=7, row=255))
    assert_object(read_mask(once), once.numpy())


def test_value_picks_one_label_and_keeps_ignored_pixels():
    expected = OBJECT.astype(np.uint8)
    expected[5] = 255
    assert_object(read_mask(labelled(object=4, corner=9, row=255), value=4), expected)
    assert_object(read_mask(labelled(object=4, corner=9, row=255), value=np.int64(4)), expected)


def test_value_255_picks_255():
    row = np.zeros((6, 8))
    row[5] = 1
    assert_object(read_mask(labelled(object=4, row=255), value=255), row)


def test_value_0_picks_the_label_0():
    assert_object(read_mask(labelled(object=4), value=0), ~OBJECT)


def test_value_beyond_eight_bits_is_found_in_wide_label_maps():
    for dtype in (np.uint16, np.int32, np.int64, np.uint64):
        assert_object(read_mask(OBJECT.astype(dtype) * dtype(1000), value=1000))
    assert_object(read_mask(OBJECT.astype(np.int64) * 10**12, value=10**12))


def test_value_that_is_absent_is_an_error_listing_the_labels():
    with pytest.raises(ValueError, match=r"mask: expected pixels of label 5, got only 0, 4, 9$"):
        read_mask(labelled(object=4, corner=9), value=5)


@pytest.mark.parametrize(
    ("value", "error"), [(-1, ValueError), (True, TypeError), (1.0, TypeError)]
)
def test_bad_value_is_an_error(value, error):
    with pytest.raises(error, match=r"^value: expected"):
        read_mask(labelled(object=1), value=value)


def test_several_labels_without_value_are_an_error_listing_them():
    with pytest.raises(
        ValueError,
        match=r"one label beside background, .* \(such as 4\), got 3 labels: 4, 7, 9$",
    ):
        read_mask(labelled(object=4, corner=9, row=7))


def test_jpeg_noise_is_an_error_that_says_what_to_do(tmp_path):
    path = tmp_path / "mask.jpg"
    disc = np.hypot(*np.mgrid[-50:50, -50:50]) < 30
    Image.fromarray((disc * 255).astype(np.uint8)).save(path, quality=60)
    with pytest.raises(ValueError, match=r"and \d+ more; if it is .* saved as JPEG, threshold it$"):
        read_mask(path)


@pytest.mark.parametrize("channels", [1, 3])
def test_alpha_that_varies_is_the_mask(channels):
    alpha = np.where(OBJECT, 128, 127).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, channels), dtype=np.uint8)
    image = Image.fromarray(np.dstack([noise, alpha]))
    assert image.mode == {1: "LA", 3: "RGBA"}[channels]
    assert_object(read_mask(image))
    if channels == 3:
        array = np.dstack([noise, alpha])
        assert_object(read_mask(array))
        assert_object(read_mask(torch.from_numpy(array).permute(2, 0, 1)))


def test_alpha_of_floats_is_taken_from_a_half():
    rgba = np.zeros((6, 8, 4), dtype=np.float32)
    rgba[..., 3] = np.where(OBJECT, 0.5, 0.49)
    assert_object(read_mask(rgba))


@pytest.mark.parametrize("alpha", [255, 0, 100])
def test_alpha_that_does_not_vary_is_dropped(alpha):
    image = Image.fromarray(labelled(object=255)).convert("RGBA")
    image.putalpha(alpha)
    assert_object(read_mask(image))


def test_value_reads_the_labels_and_not_alpha():
    labels = labelled(object=3, corner=9)
    alpha = np.zeros((6, 8), dtype=np.uint8)
    alpha[:, :4] = 255
    assert_object(read_mask(Image.fromarray(np.dstack([labels, alpha])), value=3))


def test_rgb_with_more_colours_is_an_error_counting_them():
    colours = np.zeros((6, 8, 3), dtype=np.uint8)
    colours[1, 1], colours[2, 2] = (255, 0, 0), (0, 255, 0)
    with pytest.raises(
        ValueError, match=r"expected labels in one channel .*, got RGB with 3 colours$"
    ):
        read_mask(Image.fromarray(colours))


def test_rgb_with_two_colours_and_no_black_is_an_error():
    colours = np.full((6, 8, 3), (0, 0, 200), dtype=np.uint8)
    colours[OBJECT] = (255, 0, 0)
    with pytest.raises(ValueError, match="got RGB with 2 colours"):
        read_mask(colours)


def test_rgb_of_one_colour_is_an_error():
    with pytest.raises(ValueError, match=r"got RGB with 1 colour$"):
        read_mask(np.full((6, 8, 3), (0, 0, 200), dtype=np.uint8))


def test_other_size_is_an_error_with_both_sizes(tmp_path):
    path = tmp_path / "mask.png"
    Image.fromarray(OBJECT).save(path)
    message = (
        f"support[2] mask '{path}': expected 7 rows x 9 columns as its image has, got 6 rows x 8 "
        "columns"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        read_mask(path, size=(7, 9), argument="support[2] mask")


def test_turned_size_is_an_error_that_speaks_of_rotation():
    with pytest.raises(
        ValueError, match="got 6 rows x 8 columns; was it drawn on the photo without its EXIF"
    ):
        read_mask(OBJECT, size=(8, 6))


def test_exif_orientation_of_a_mask_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "mask.png"
    Image.fromarray(np.ascontiguousarray(np.rot90(labelled(object=255)))).save(path, exif=exif)
    assert_object(read_mask(path, size=(6, 8)))


def test_mask_without_foreground_is_an_error():
    for source in (np.zeros((6, 8)), Image.new("1", (8, 6)), Image.new("RGB", (8, 6))):
        with pytest.raises(
            ValueError, match=r"^mask: expected some foreground, got 0 in every pixel$"
        ):
            read_mask(source)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (
            np.array([[0, 0.5]]),
            r"expected whole-numbered labels, got fractions in 0\.\.0\.5; threshold",
        ),
        (np.array([[0, np.nan]]), "expected finite numbers, got 1 NaN values"),
        (np.array([[0, np.inf]]), "expected finite numbers, got 1 infinite values"),
        (np.array([[-1, 1]]), "expected labels of 0 or more, got -1"),
        (np.array([[-1.0, 1.0]]), "expected labels of 0 or more, got -1"),
        (np.zeros((2, 6, 8)), r"expected \(H, W\) or .*, got \(2, 6, 8\)"),
        (np.zeros((6, 0)), "expected at least one pixel, got shape"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_numbers_are_value_errors(array, message):
    for source in (array, torch.from_numpy(array)):
        with pytest.raises(ValueError, match=f"^mask: {message}"):
            read_mask(source)


@pytest.mark.parametrize("source", [None, 1, [[0, 1]], np.array([["a"]])], ids=str)
def test_other_kinds_are_a_type_error(source):
    with pytest.raises(TypeError, match=r"^mask: expected .*, got"):
        read_mask(source)


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV", "LAB"])
def test_modes_that_hold_no_labels_are_an_error(mode):
    with pytest.raises(ValueError, match=f"mask: expected a 1-bit, .*, got mode {mode}"):
        read_mask(Image.new(mode, (8, 6)))


def test_missing_and_damaged_files_are_errors_naming_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.png': no such file"):
        read_mask(tmp_path / "absent.png")
    path = tmp_path / "cut.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"support\[0\] mask '.*cut.png': cannot be read"):
        read_mask(path, argument="support[0] mask")
    with pytest.raises(ValueError, match="it is a folder"):
        read_mask(tmp_path)


@pytest.mark.parametrize(
    "form",
    [
        lambda labels: labels,
        lambda labels: labels.astype(np.float32),
        lambda labels: torch.from_numpy(labels),
        palette_image,
        Image.fromarray,
    ],
    ids=["array", "whole floats", "tensor", "palette", "grey"],
)
def test_a_label_map_keeps_its_labels(form) -> None:
    labels = labelled(object=3, corner=255, row=7)
    found = read_label_map(form(labels))
    assert found.dtype == torch.int64
    assert found.tolist() == labels.tolist()


def test_a_label_map_may_be_background_alone() -> None:
    assert read_label_map(np.zeros((4, 5), np.uint8)).sum() == 0


def test_a_label_map_that_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match="labels: expected 8 rows x 6 columns"):
        read_label_map(labelled(object=3), size=(8, 6))
    with pytest.raises(ValueError, match="truth: expected whole-numbered labels, got fractions"):
        read_label_map(np.full((4, 5), 0.5), argument="truth")
    with pytest.raises(ValueError, match="labels: expected labels of 0 or more, got -1"):
        read_label_map(np.full((4, 5), -1))
