"""Thumbnails of evaluated images."""

from __future__ import annotations

import hashlib
import io
from functools import lru_cache
from pathlib import Path

from PIL import Image

from dlcv_cli.vision import images

SIDE = 96  # of a thumbnail, in pixels


@lru_cache(maxsize=1024)
def make_thumbnail(path: Path, sha256: str) -> tuple[bytes, tuple[int, int]]:
    """Return an image as a small upright JPEG, and its (width, height).

    Images of a few pixels are enlarged, each pixel a square.

    Raises:
        ValueError: the image is missing or its sha256 is another; the message is the reason in a word.
    """
    if not path.exists():
        raise ValueError("missing")
    data = images.read_image_file(path)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ValueError("changed")
    with images.convert_decoder_errors():
        image = images.decode_image(images.open_image(data))
    image.thumbnail((SIDE, SIDE))
    if (factor := SIDE // max(image.size)) > 1:
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return buffer.getvalue(), image.size
