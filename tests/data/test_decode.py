import struct

import cv2
import numpy as np
import pytest
from image_files import encoded, picture

from metricid.data.decode import ImageError, decode_image

LOSSLESS = [".png", ".bmp", ".ppm"]
FORMATS = [".jpg", ".webp", *LOSSLESS]
PROGRESSIVE = (cv2.IMWRITE_JPEG_PROGRESSIVE, 1)


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_lossless_formats_give_the_rgb_pixels(suffix):
    image = picture(0)
    np.testing.assert_array_equal(decode_image(encoded(image, suffix), "x"), image)


@pytest.mark.parametrize(
    "data",
    [
        encoded(picture(0), ".jpg", cv2.IMWRITE_JPEG_QUALITY, 98),
        encoded(picture(0), ".jpg", *PROGRESSIVE),
        encoded(picture(0), ".webp", cv2.IMWRITE_WEBP_QUALITY, 101),
        encoded(picture(0), ".webp", cv2.IMWRITE_WEBP_QUALITY, 95),
    ],
)
def test_lossy_formats_come_close_in_rgb_order(data):
    assert np.abs(decode_image(data, "x").astype(int) - picture(0)).mean() < 8


def test_grey_alpha_and_16_bit_become_rgb_bytes():
    image = picture(1)
    grey = image[..., 0]
    np.testing.assert_array_equal(decode_image(encoded(grey, ".png"), "x"), np.stack([grey] * 3, axis=2))
    with_alpha = np.dstack([image, np.full(image.shape[:2], 7, np.uint8)])
    np.testing.assert_array_equal(decode_image(encoded(with_alpha, ".png"), "x"), image)
    deep = image.astype(np.uint16) * 257
    np.testing.assert_array_equal(decode_image(encoded(deep, ".png"), "x"), image)
    grey_ppm = b"P5\n# a comment\n2 1\n255\n\x10\x20"
    np.testing.assert_array_equal(decode_image(grey_ppm, "x")[0, :, 0], [16, 32])


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_cut_off_file_is_an_error_wherever_it_is_cut(suffix):
    data = encoded(picture(2, 64, 48), suffix)
    for length in {1, 2, 3, 10, 20, 30, 60, *np.linspace(1, len(data) - 1, 40, dtype=int).tolist()}:
        with pytest.raises(ImageError, match=r"^some/file: "):
            decode_image(data[:length], "some/file")


@pytest.mark.parametrize("options", [(), PROGRESSIVE])
def test_a_cut_off_jpeg_padded_with_zeros_is_an_error(options):
    data = encoded(picture(2, 64, 48), ".jpg", *options)
    half = len(data) * 3 // 4
    with pytest.raises(ImageError, match="cut off"):
        decode_image(data[:half] + bytes(len(data) - half), "x")


def test_a_jpeg_with_an_embedded_preview_is_cut_off_although_the_preview_ends():
    whole, preview = encoded(picture(2, 64, 48)), encoded(picture(3, 8, 8))
    segment = b"\xff\xe1" + struct.pack(">H", len(preview) + 2) + preview
    data = whole[:2] + segment + whole[2:]
    np.testing.assert_array_equal(decode_image(data, "x"), decode_image(whole, "x"))
    with pytest.raises(ImageError, match="cut off"):
        decode_image(data[:-5], "x")
    with pytest.raises(ImageError, match="cut off"):
        decode_image(data[: 2 + len(segment)], "x")


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp", ".ppm"])
def test_bytes_after_the_end_do_no_harm(suffix):
    data = encoded(picture(4), suffix)
    np.testing.assert_array_equal(decode_image(data + b"made by a camera", "x"), decode_image(data, "x"))


def test_empty_and_text_files():
    with pytest.raises(ImageError, match="the file is empty"):
        decode_image(b"", "x")
    for text in (b"hello, I am a text", b"<html>404</html>", b"GIF89a" + bytes(50)):
        with pytest.raises(ImageError, match="not an image in JPEG, PNG"):
            decode_image(text, "x")


def test_damaged_pixels_of_a_png_are_an_error():
    data = bytearray(encoded(picture(2, 64, 48), ".png"))
    middle = data.index(b"IDAT") + 40
    data[middle : middle + 8] = bytes(8)
    with pytest.raises(ImageError, match="damaged"):
        decode_image(bytes(data), "x")


def claimed(suffix: str, width: int, height: int) -> bytes:
    """A small file whose header claims another size."""
    data = bytearray(
        encoded(picture(0), suffix, *((cv2.IMWRITE_WEBP_QUALITY, 90) if suffix == ".webp" else ()))
    )
    if suffix == ".jpg":
        struct.pack_into(">HH", data, data.index(b"\xff\xc0") + 5, height, width)
    elif suffix == ".png":
        struct.pack_into(">II", data, 16, width, height)
    elif suffix == ".bmp":
        struct.pack_into("<ii", data, 18, width, height)
    elif suffix == ".webp":
        struct.pack_into("<HH", data, 26, width & 0x3FFF, height & 0x3FFF)
    else:
        return b"P6\n%d %d\n255\n" % (width, height)
    return bytes(data)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_pixel_bomb_is_refused_by_its_header(suffix):
    side = 16000 if suffix == ".webp" else 20000
    with pytest.raises(
        ImageError, match=rf"bomb: {side} x {side} pixels are more than the limit of 50000000"
    ):
        decode_image(claimed(suffix, side, side), "bomb")


def test_the_pixel_limit_can_be_set():
    data = encoded(picture(0, 20, 30))
    assert decode_image(data, "x", max_pixels=600).shape == (20, 30, 3)
    with pytest.raises(ImageError, match=r"30 x 20 pixels .* limit of 599"):
        decode_image(data, "x", max_pixels=599)


def test_a_size_of_nothing_is_refused():
    with pytest.raises(ImageError, match="0 x 5 pixels"):
        decode_image(claimed(".png", 0, 5), "x")


def test_large_webp_headers():
    lossless = encoded(picture(0, 30, 50), ".webp", cv2.IMWRITE_WEBP_QUALITY, 101)
    assert decode_image(lossless, "x", max_pixels=1500).shape == (30, 50, 3)
    with pytest.raises(ImageError, match="50 x 30"):
        decode_image(lossless, "x", max_pixels=1499)
    extended = b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<II", 10, 0)
    extended += (15999).to_bytes(3, "little") + (9999).to_bytes(3, "little")
    with pytest.raises(ImageError, match="16000 x 10000"):
        decode_image(extended, "x")


@pytest.mark.parametrize("suffix", FORMATS)
def test_no_damage_of_the_header_escapes_as_another_error(suffix):
    data = encoded(picture(5), suffix)
    rng = np.random.default_rng(0)
    for _ in range(300):
        broken = bytearray(data)
        for at in rng.integers(0, min(len(data), 60), 3):
            broken[at] = rng.integers(256)
        try:
            assert decode_image(bytes(broken), "x", max_pixels=10**6).dtype == np.uint8
        except ImageError as error:
            assert str(error).startswith("x: ")


def test_the_orientation_that_a_camera_notes_is_applied():
    whole = encoded(picture(6), ".jpg", cv2.IMWRITE_JPEG_QUALITY, 100)
    tag = struct.pack("<HHHIHHI", 1, 0x0112, 3, 1, 6, 0, 0)
    exif = b"Exif\0\0II*\0\x08\0\0\0" + tag
    turned = whole[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + whole[2:]
    expected = np.rot90(decode_image(whole, "x"), -1)
    np.testing.assert_array_equal(decode_image(turned, "x"), expected)
