from __future__ import annotations

import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastfss.data import read_image

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)


def as_array(image: torch.Tensor) -> np.ndarray:
    assert image.dtype == torch.uint8
    assert image.is_contiguous()
    return image.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "ppm", "webp"])
def test_file_is_read_as_rgb(tmp_path, suffix):
    path = tmp_path / f"photo.{suffix}"
    Image.fromarray(COLOURS).save(path, lossless=True)
    for source in (path, str(path), Image.open(path)):
        np.testing.assert_array_equal(as_array(read_image(source)), COLOURS)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "PA", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_pil_mode_is_converted_to_rgb(mode):
    image = Image.fromarray(COLOURS).convert("RGBA" if mode == "PA" else "RGB").convert(mode)
    np.testing.assert_array_equal(as_array(read_image(image)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["La", "RGBa"])
def test_premultiplied_alpha_is_undone(mode):
    straight = Image.fromarray(COLOURS).convert("LA" if mode == "La" else "RGBA")
    straight.putalpha(255)
    expected = np.asarray(straight.convert("RGB"))
    np.testing.assert_array_equal(as_array(read_image(straight.convert(mode))), expected)


def test_alpha_is_dropped_not_composited():
    rgba = np.dstack([COLOURS, np.zeros((5, 7), np.uint8)])
    for source in (Image.fromarray(rgba), rgba, torch.from_numpy(rgba).permute(2, 0, 1)):
        np.testing.assert_array_equal(as_array(read_image(source)), COLOURS)


def test_transparent_palette_is_read_without_a_warning(tmp_path, recwarn):
    image = Image.fromarray(COLOURS).quantize(8)
    path = tmp_path / "palette.png"
    image.save(path, transparency=bytes([0, 128, 255, 255, 255, 255, 255, 255]))
    np.testing.assert_array_equal(as_array(read_image(path)), np.asarray(image.convert("RGB")))
    assert not recwarn.list


def test_sixteen_bit_grey_is_scaled_to_eight_bits(tmp_path):
    wide = np.array([[0, 128, 129, 257, 32768, 65406, 65407, 65535]], dtype=np.uint16)
    path = tmp_path / "wide.png"
    Image.fromarray(wide).save(path)
    expected = np.rint(wide / 257).astype(np.uint8)
    as_32_bits = Image.fromarray(wide.astype(np.int32))
    assert as_32_bits.mode == "I"
    for source in (path, wide, wide.astype(">u2"), torch.from_numpy(wide), as_32_bits):
        for channel in as_array(read_image(source)).transpose(2, 0, 1):
            np.testing.assert_array_equal(channel, expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    upright = np.zeros((16, 32, 3), dtype=np.uint8)
    upright[:8, :8] = 255
    stored = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation](upright)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "photo.jpg"
    Image.fromarray(np.ascontiguousarray(stored)).save(path, quality=95, exif=exif)
    for source in (path, Image.open(path)):
        read = as_array(read_image(source))
        assert read.shape == upright.shape
        np.testing.assert_allclose(read.astype(int), upright, atol=12)


def test_first_frame_of_an_animation_is_taken(tmp_path):
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("red", "blue")]
    path = tmp_path / "moving.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert as_array(read_image(path))[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((5, 7), (5, 7)),
        ((5, 7, 1), (5, 7)),
        ((5, 7, 3), (5, 7)),
        ((5, 7, 4), (5, 7)),
        ((3, 5, 7), (5, 7)),
        ((1, 5, 7), (5, 7)),
        ((3, 3, 3), (3, 3)),
        ((3, 3, 4), (3, 3)),
        ((3, 3, 9), (3, 9)),
        ((3, 9, 3), (3, 9)),
    ],
    ids=str,
)
def test_array_is_height_width_channels_unless_only_the_other_order_fits(shape, expected):
    array = RNG.integers(0, 256, shape, dtype=np.uint8)
    read = read_image(array)
    assert tuple(read.shape[1:]) == expected
    if array.ndim == 3 and array.shape[2] in (3, 4):
        np.testing.assert_array_equal(as_array(read), array[:, :, :3])


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((5, 7), (5, 7)),
        ((1, 5, 7), (5, 7)),
        ((3, 5, 7), (5, 7)),
        ((4, 5, 7), (5, 7)),
        ((5, 7, 3), (5, 7)),
        ((3, 3, 3), (3, 3)),
        ((3, 3, 9), (3, 9)),
        ((3, 9, 3), (9, 3)),
        ((9, 3, 3), (9, 3)),
    ],
    ids=str,
)
def test_tensor_is_channels_height_width_unless_only_the_other_order_fits(shape, expected):
    tensor = torch.from_numpy(RNG.integers(0, 256, shape, dtype=np.uint8))
    read = read_image(tensor)
    assert tuple(read.shape[1:]) == expected
    if tensor.ndim == 3 and tensor.shape[0] in (3, 4):
        assert torch.equal(read, tensor[:3])


@pytest.mark.parametrize(
    "shape", [(2, 5, 7), (5, 7, 2), (1, 3, 5, 7), (7,), (), (6, 5, 7)], ids=str
)
@pytest.mark.parametrize("make", [np.zeros, torch.zeros], ids=["array", "tensor"])
def test_other_shapes_are_an_error(make, shape):
    with pytest.raises(
        ValueError, match=rf"^query: expected \(H, W\) or .*, got {re.escape(str(shape))}"
    ):
        read_image(make(shape), argument="query")


def test_batch_error_says_to_give_one_image():
    with pytest.raises(ValueError, match="give one image, not a batch"):
        read_image(torch.zeros(2, 3, 4, 5))


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str
)
def test_float_tensor_in_0_1_becomes_eight_bits(dtype):
    tensor = torch.rand(3, 5, 7, dtype=dtype, requires_grad=True)
    expected = (tensor.detach().float() * 255).round().to(torch.uint8)
    assert torch.equal(read_image(tensor), expected)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_every_eight_bit_value_survives_as_a_float(dtype):
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    read = read_image((values / 255).astype(dtype))
    # float16 holds 11 bits, enough to tell 256 steps apart.
    np.testing.assert_array_equal(as_array(read)[:, :, 0], values)


def test_rounding_error_beyond_0_1_is_clipped():
    read = read_image(np.array([[-1e-3, 1.001]], dtype=np.float32))
    assert read[0].tolist() == [[0, 255]]


@pytest.mark.parametrize(
    ("values", "hint"),
    [
        ([0.0, 255.0], "divide by 255"),
        ([-2.1, 2.6], "undo the normalisation"),
        ([0.0, 4000.0], "scale them"),
    ],
)
def test_float_out_of_range_is_an_error_with_the_range_and_a_hint(values, hint):
    message = rf"^image: expected floats in 0\.\.1, got {values[0]:.4g}\.\.{values[1]:.4g} \({hint}"
    for source in (np.array([values]), torch.tensor([values])):
        with pytest.raises(ValueError, match=message):
            read_image(source)


@pytest.mark.parametrize(("bad", "kind"), [(np.nan, "NaN"), (np.inf, "infinite")])
def test_nan_and_infinity_are_errors(bad, kind):
    array = np.full((3, 4), 0.5, dtype=np.float32)
    array[1, :2] = bad
    for source in (array, torch.from_numpy(array), Image.fromarray(array)):
        with pytest.raises(
            ValueError, match=rf"^query: expected finite numbers, got 2 {kind} values$"
        ):
            read_image(source, argument="query")


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.int64, np.int8, np.uint32])
def test_integers_within_0_255_are_taken_as_they_are(dtype):
    array = np.array([[0, 1, 127]], dtype=dtype)
    assert read_image(array)[0].tolist() == [[0, 1, 127]]


@pytest.mark.parametrize("values", [[-1, 5], [0, 256]])
def test_integers_out_of_range_are_an_error(values):
    with pytest.raises(
        ValueError, match=rf"integers in 0\.\.255, .*, got int64 in {values[0]}\.\.{values[1]}$"
    ):
        read_image(torch.tensor([values]))


def test_bool_is_black_and_white():
    assert read_image(np.array([[True, False]]))[2].tolist() == [[255, 0]]


def test_result_does_not_share_memory_with_the_input():
    tensor = torch.zeros(3, 4, 5, dtype=torch.uint8)
    array = np.zeros((4, 5, 3), dtype=np.uint8)
    for source in (tensor, array):
        read_image(source)[:] = 7
        assert int(source.max()) == 0


@pytest.mark.parametrize(
    "source", [COLOURS[::-1, ::-1], np.asfortranarray(COLOURS), COLOURS[:, ::2]], ids=str
)
def test_any_strides_are_read(source):
    np.testing.assert_array_equal(as_array(read_image(source)), source)


def test_read_only_array_is_read_without_a_warning(recwarn):
    array = COLOURS.copy()
    array.flags.writeable = False
    read_image(array)
    assert not recwarn.list


@pytest.mark.parametrize(
    "source",
    [None, 3, b"bytes", [[1, 2]], np.array([["a"]]), np.zeros((2, 2), complex)],
    ids=lambda source: type(source).__name__,
)
def test_other_kinds_are_a_type_error(source):
    with pytest.raises(TypeError, match=r"^support\[1\] image: expected .*, got "):
        read_image(source, argument="support[1] image")


@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(2, 2, dtype=torch.complex64), torch.zeros(2, 2).to_sparse()],
    ids=["complex", "sparse"],
)
def test_tensor_of_other_kinds_is_a_type_error(tensor):
    with pytest.raises(TypeError, match="dense tensor of real numbers"):
        read_image(tensor)


def test_missing_file_is_file_not_found(tmp_path):
    path = tmp_path / "absent.jpg"
    with pytest.raises(FileNotFoundError, match=re.escape(f"query '{path}': no such file")):
        read_image(path, argument="query")


def test_folder_is_an_error(tmp_path):
    with pytest.raises(
        ValueError, match=re.escape(f"image '{tmp_path}': cannot be read (it is a f")
    ):
        read_image(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"\x89PNG\r\n\x1a\n"], ids=["empty", "text", "header"]
)
def test_file_that_is_no_image_is_an_error(tmp_path, content):
    path = tmp_path / "photo.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"image '{path}': ")):
        read_image(path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "gif"])
def test_truncated_file_is_an_error(tmp_path, suffix):
    whole = tmp_path / f"whole.{suffix}"
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(whole)
    cut = tmp_path / f"cut.{suffix}"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(ValueError, match=rf"query '.*cut\.{suffix}': "):
        read_image(cut, argument="query")


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "tif", "bmp"])
def test_damaged_bytes_give_an_image_or_a_value_error(tmp_path, suffix):
    """Decoders raise SyntaxError, struct.error and others; none of them may come through."""
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = tmp_path / f"whole.{suffix}"
    image = Image.fromarray(RNG.integers(0, 256, (16, 24, 3), dtype=np.uint8))
    image.save(whole, **({"exif": exif} if suffix in ("png", "jpg", "webp") else {}))
    content = whole.read_bytes()
    damaged = tmp_path / f"damaged.{suffix}"
    refused = 0
    for _ in range(150):
        garbled = bytearray(content)
        for place in RNG.integers(0, min(len(content), 400), 3):
            garbled[place] = RNG.integers(0, 256)
        damaged.write_bytes(garbled)
        try:
            read_image(damaged)
        except ValueError as error:
            refused += 1
            assert "damaged" in str(error)
    assert refused or suffix == "bmp"


def test_decompression_bomb_is_an_error(tmp_path):
    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    path = tmp_path / "bomb.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b""))
    with pytest.raises(ValueError, match=r"bomb\.png': cannot be read \(Image size"):
        read_image(path)


@pytest.mark.parametrize(
    "source",
    [np.zeros((0, 4, 3), np.uint8), torch.zeros(3, 4, 0), Image.new("RGB", (0, 4))],
    ids=type,
)
def test_image_without_pixels_is_an_error(source):
    with pytest.raises(ValueError, match=r"image: (expected at least one pixel|.*0 x 4 pixels)"):
        read_image(source)


def test_closed_pil_image_is_an_error(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(COLOURS).save(path)
    image = Image.open(path)
    image.close()
    with pytest.raises(ValueError, match="image: cannot be read"):
        read_image(image)


def test_file_without_read_permission_is_named(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(PermissionError, match=r"image .photo\.png.: no permission"):
        read_image(Path("photo.png"))
