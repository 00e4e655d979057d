"""Encoded bytes to RGB pixels, refusing what is cut off, too large or no image at all."""

import struct
from typing import NamedTuple

import cv2
import numpy as np

from metricid.errors import InputError

MAX_PIXELS = 50_000_000
_JPEG_ALONE = frozenset({0x01, *range(0xD0, 0xD8)})  # markers without a length: TEM, RST0..RST7
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0..SOF15 without DHT, JPG, DAC


class ImageError(InputError):
    """One image cannot be used; `on_corrupt: skip` forgives this error and no other."""


class _Header(NamedTuple):
    width: int
    height: int
    whole: bool


def decode_image(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decodes a JPEG, PNG, BMP, WebP or PPM/PGM file.

    Grey, palette and RGBA images become RGB (alpha is dropped), 16-bit ones 8-bit; the EXIF orientation is
    applied. Size and completeness are read off the file's own structure first: the decoder would allocate
    whatever a header claims, and fills the missing part of a cut-off JPEG with grey without a word.

    Args:
        data: the encoded file.
        name: what an error message calls it.
        max_pixels: largest width x height.

    Returns:
        [H, W, 3] uint8, RGB.

    Raises:
        ImageError: one line that names the file and says what is wrong with it.
    """
    if not data:
        raise ImageError(f"{name}: the file is empty")
    try:
        header = _header(data)
    except (struct.error, IndexError, ValueError):
        raise ImageError(f"{name}: the image is cut off within its header") from None
    if header is None:
        raise ImageError(f"{name}: not an image in JPEG, PNG, BMP, WebP or PPM format")
    if header.width < 1 or header.height < 1:
        raise ImageError(f"{name}: the header says {header.width} x {header.height} pixels")
    if header.width * header.height > max_pixels:
        raise ImageError(
            f"{name}: {header.width} x {header.height} pixels are more than the limit of {max_pixels} "
            "(max_pixels); make it smaller or raise the limit"
        )
    if not header.whole:
        raise ImageError(f"{name}: the image is cut off; copy or download it again")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error:
        image = None
    if image is None:
        raise ImageError(f"{name}: the image is damaged and cannot be decoded")
    return image


def _header(data: bytes) -> _Header | None:
    if data[:2] == b"\xff\xd8":
        return _jpeg(data)
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return _png(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _webp(data)
    if data[:2] == b"BM":
        return _bmp(data)
    if data[:2] in (b"P5", b"P6"):
        return _pnm(data)
    return None


def _jpeg(data: bytes) -> _Header:
    """Walks the segments up to the first scan (ITU T.81, annex B)."""
    at, width, height = 2, 0, 0
    while True:
        while data[at] != 0xFF:
            at += 1
        while data[at] == 0xFF:
            at += 1
        marker = data[at]
        at += 1
        if marker in _JPEG_ALONE:
            continue
        length = (data[at] << 8) | data[at + 1]
        if marker in _JPEG_FRAMES:
            height, width = (data[at + 3] << 8) | data[at + 4], (data[at + 5] << 8) | data[at + 6]
        elif marker == 0xDA:
            # Within a scan 0xFF is always followed by 0x00 or a restart marker, so that FFD9 there is the end
            # of the image; what cameras append comes after it.
            return _Header(
                width, height, data.endswith(b"\xff\xd9") or data.find(b"\xff\xd9", at + length) > 0
            )
        elif marker == 0xD9:
            return _Header(width, height, False)
        at += length


def _png(data: bytes) -> _Header:
    """Walks all chunks: the decoder would allocate whatever length a damaged one claims."""
    width, height = struct.unpack_from(">II", data, 16)
    at = 8
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"IEND":
            return _Header(width, height, True)
        at += 12 + length
    return _Header(width, height, False)


def _webp(data: bytes) -> _Header:
    (size,) = struct.unpack_from("<I", data, 4)
    whole, kind = len(data) >= size + 8, data[12:16]
    if kind == b"VP8X":
        width = int.from_bytes(data[24:27], "little") + 1
        height = struct.unpack_from("<I", data, 26)[0] >> 8
        return _Header(width, height + 1, whole)
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return _Header((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, whole)
    width, height = struct.unpack_from("<HH", data, 26)
    return _Header(width & 0x3FFF, height & 0x3FFF, whole)


def _bmp(data: bytes) -> _Header:
    size, offset = struct.unpack_from("<I4xI", data, 2)
    if struct.unpack_from("<I", data, 14)[0] == 12:
        width, height = struct.unpack_from("<HH", data, 18)
        depth, compression = struct.unpack_from("<H", data, 24)[0], 0
    else:
        width, height = struct.unpack_from("<ii", data, 18)
        depth, compression = struct.unpack_from("<HI", data, 28)
    height = abs(height)
    rows = 0 if compression in (1, 2) else offset + (width * depth + 31) // 32 * 4 * height
    return _Header(width, height, len(data) >= max(size, rows))


def _pnm(data: bytes) -> _Header:
    fields: list[int] = []
    at = 2
    while len(fields) < 3:
        if data[at : at + 1].isspace():
            at += 1
        elif data[at] == ord("#"):
            at = data.index(b"\n", at)
        else:
            end = at
            while data[end : end + 1].isdigit():
                end += 1
            fields.append(int(data[at:end]))
            at = end
    width, height, largest = fields
    sample = (3 if data[:2] == b"P6" else 1) * (2 if largest > 255 else 1)
    return _Header(width, height, len(data) - at - 1 >= width * height * sample)
