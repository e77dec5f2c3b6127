"""Image files -> pixels. Decides by content what is an image, and refuses what would harm."""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import struct
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from dlcv_cli.config import Augment
from dlcv_cli.errors import FileError
from dlcv_cli.vision.preprocessing import Preprocessing

FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF")
SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".gif"}
MAX_PIXELS = 128 * 2**20  # above the 108 megapixels of today's phones; decoded, 400 MB
MAX_BYTES = 512 * 2**20

View = Callable[[Image.Image, int], NDArray[np.uint8]]  # an RGB image and its index -> (crop, crop, 3)

# Ours is checked below, from the header, before anything is decoded.
Image.MAX_IMAGE_PIXELS = None
Image.init()  # Image.open with `formats` needs every one of them registered


def looks_like_image(head: bytes) -> bool:
    """Whether a file's first 32 bytes are those of a JPEG, PNG, BMP, WebP or GIF."""
    return (
        head.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a"))
        or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
        or (head[:2] == b"BM" and head[6:10] == bytes(4) and head[14:18] in _BMP_HEADERS)
    )


_BMP_HEADERS = {struct.pack("<I", size) for size in (12, 40, 52, 56, 64, 108, 124)}


def open_upright(data: bytes) -> Image.Image:
    """Decodes an image file: first frame, EXIF orientation applied, RGB of 8 bits; transparency over white.

    Raises:
        ValueError: with the reason, when it cannot be decoded or is larger than MAX_PIXELS.
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(
                    f"{image.width} x {image.height} pixels is more than the {MAX_PIXELS:,} that are accepted"
                )
            image.load()
            with contextlib.suppress(Exception):  # damaged EXIF says nothing about the pixels
                image = ImageOps.exif_transpose(image)
            return _rgb(image)
    except UnidentifiedImageError:
        raise ValueError("not an image that can be read") from None
    except ValueError:
        raise
    except MemoryError:
        raise ValueError("too large for this machine's memory") from None
    # Pillow's decoders raise many kinds of error on damaged files; each means the same to the user.
    except Exception as error:
        raise ValueError(f"damaged ({str(error) or type(error).__name__})") from None


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit gray, which convert("RGB") would clip at 255
        gray = np.asarray(image).astype(np.float64) / 257
        return Image.fromarray(gray.round().clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def resize_and_crop(image: Image.Image, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """RGB image -> (crop, crop, 3): short side to `resize`, bilinear with antialiasing, then the middle.

    The middle alone is computed, so that a sliver of 1 x 20,000 pixels does not become gigabytes.
    """
    size, crop = preprocessing.resize, preprocessing.crop
    short = min(image.size)
    new = [int(size * side / short) for side in image.size]
    # Python's round, to even, as torchvision's center_crop has it
    start = [round((side - crop) / 2.0) for side in new]
    scale = [old / side for old, side in zip(image.size, new, strict=True)]
    left, top = (s * k for s, k in zip(start, scale, strict=True))
    right, bottom = ((s + crop) * k for s, k in zip(start, scale, strict=True))
    box = (left, top, min(right, image.width), min(bottom, image.height))
    return np.asarray(image.resize((crop, crop), Image.Resampling.BILINEAR, box=box))


def random_view(
    image: Image.Image, preprocessing: Preprocessing, augment: Augment, rng: Generator
) -> NDArray[np.uint8]:
    """RGB image -> (crop, crop, 3): `flip` mirrors half of the images, `crop-flip` also takes a random part of each.

    The part has 35 to 100 % of the area and a side ratio of 3/4 to 4/3, each drawn uniformly (the ratio's logarithm).
    Source: Szegedy et al. 2015 (arXiv:1409.4842), section 6, with a smaller range of areas.
    """
    mirrored = rng.random() < 0.5
    if augment == "crop-flip":
        area = image.width * image.height * rng.uniform(0.35, 1)
        ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        width, height = min(image.width, np.sqrt(area * ratio)), min(image.height, np.sqrt(area / ratio))
        left, top = rng.uniform(0, image.width - width), rng.uniform(0, image.height - height)
        side = preprocessing.crop
        box = (left, top, min(left + width, image.width), min(top + height, image.height))
        pixels = np.asarray(image.resize((side, side), Image.Resampling.BILINEAR, box=box))
    else:
        pixels = resize_and_crop(image, preprocessing)
    return pixels[:, ::-1] if mirrored else pixels


def read(path: Path) -> bytes:
    """A whole image file. ValueError with the reason when it cannot be read."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from None
    if len(data) > MAX_BYTES:
        raise ValueError(f"larger than {MAX_BYTES // 2**20} MiB")
    return data


def sha256(path: Path) -> str:
    """Hex sha256 of an image file. ValueError with the reason when it cannot be read."""
    return hashlib.sha256(read(path)).hexdigest()


def problem(path: Path) -> str | None:
    """Why an image cannot be used, or None when it decodes."""
    try:
        open_upright(read(path))
    except ValueError as error:
        return str(error)
    return None


def load(path: Path, view: View, index: int) -> NDArray[np.uint8]:
    """One image, seen as `view` says. FileError when it cannot be read."""
    try:
        return view(open_upright(read(path)), index)
    except ValueError as error:
        raise FileError(path, str(error)) from None


def load_batches(
    paths: Sequence[Path],
    order: NDArray[np.int64],
    view: View,
    batch_size: int,
    threads: int,
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
    """Yields (indices (n,), pixels (n, crop, crop, 3)) in the given order, decoding ahead in threads.

    Two batches at most are held ahead of the one in use.
    """
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    pending: deque[tuple[NDArray[np.int64], list[Future[NDArray[np.uint8]]]]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for number in range(math.ceil(len(order) / batch_size) + 2):
            if number < len(batches):
                batch = batches[number]
                futures = [pool.submit(load, paths[i], view, int(i)) for i in batch]
                pending.append((batch, futures))
            if number >= 2 and pending:
                batch, futures = pending.popleft()
                yield batch, np.stack([future.result() for future in futures])
    finally:
        pool.shutdown(cancel_futures=True)
