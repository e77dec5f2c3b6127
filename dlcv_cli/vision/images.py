"""Read and decode image files. The content decides what is an image, not the name. Imports no torch."""

from __future__ import annotations

import contextlib
import hashlib
import io
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF")
SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".gif"}
MAX_PIXELS = 128 * 2**20  # above the 108 megapixels of today's phones; 400 MB when decoded
MAX_BYTES = 512 * 2**20

Image.MAX_IMAGE_PIXELS = None  # open_image checks MAX_PIXELS instead, before anything is decoded
Image.init()  # Image.open with `formats` needs all of them registered


def has_image_signature(head: bytes) -> bool:
    """Return whether the first 32 bytes of a file are those of a JPEG, PNG, BMP, WebP or GIF."""
    return (
        head.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a"))
        or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
        or (head[:2] == b"BM" and head[6:10] == bytes(4) and head[14:18] in _BMP_HEADERS)
    )


_BMP_HEADERS = {struct.pack("<I", size) for size in (12, 40, 52, 56, 64, 108, 124)}


@contextlib.contextmanager
def convert_decoder_errors() -> Iterator[None]:
    """Convert any error that a decoder raises on a damaged image into a ValueError with the reason."""
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    except UnidentifiedImageError:
        raise ValueError("not an image that can be read") from None
    except ValueError:
        raise
    except MemoryError:
        raise ValueError("too large for this machine's memory") from None
    # decoders raise many kinds of error on damaged files; to the user they all mean the same
    except Exception as error:
        raise ValueError(f"damaged ({str(error) or type(error).__name__})") from None


def open_image(data: bytes) -> Image.Image:
    """Return an image without decoding its pixels. Raise ValueError if it has more than MAX_PIXELS."""
    image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels is more than the {MAX_PIXELS:,} that are accepted")
    return image


def read_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1, which changes nothing, if it is missing or damaged."""
    with contextlib.suppress(Exception):
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    return 1


def decode_image(image: Image.Image) -> Image.Image:
    """Return the first frame of an image as 8-bit RGB, in its EXIF orientation; transparency over white."""
    image.load()
    with contextlib.suppress(Exception):  # damaged EXIF data does not affect the pixels
        image = ImageOps.exif_transpose(image)
    return _convert_to_rgb(image)


def _convert_to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit gray, which convert("RGB") would clip at 255
        gray = np.asarray(image).astype(np.float64) / 257
        return Image.fromarray(gray.round().clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def read_image_file(path: Path) -> bytes:
    """Return the content of an image file. Raise ValueError, with the reason, if it cannot be read."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from None
    if len(data) > MAX_BYTES:
        raise ValueError(f"larger than {MAX_BYTES // 2**20} MiB")
    return data


def hash_image_file(path: Path) -> str:
    """Return the hex sha256 of an image file. Raise ValueError, with the reason, if it cannot be read."""
    return hashlib.sha256(read_image_file(path)).hexdigest()


def load_image(path: Path) -> Image.Image:
    """Return an image as `decode_image` does. Raise ValueError, with the reason, if it cannot be used."""
    data = read_image_file(path)
    with convert_decoder_errors():
        return decode_image(open_image(data))


def find_problem(path: Path) -> str | None:
    """Return the reason why an image cannot be used, or None if it can be decoded."""
    try:
        load_image(path)
    except ValueError as error:
        return str(error)
    return None
