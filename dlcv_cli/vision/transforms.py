"""Transforms from image files to pixels for a network: decode, resize as bytes, crop and mirror, in threads.

Letters: N images, H and W pixels.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from dlcv_cli.config import Augment
from dlcv_cli.errors import FileError
from dlcv_cli.vision import images
from dlcv_cli.vision.preprocessing import Interpolation, Preprocessing
from dlcv_cli.vision.torchvision_parts import load_functional as v2

PLAIN, MIRRORED = "plain", "mirrored"
# EXIF orientation -> turns (3, H, W) from how it is stored to how it is seen
UPRIGHT: dict[int, Callable[[Tensor], Tensor]] = {
    2: lambda x: x.flip(2),
    3: lambda x: x.flip(1, 2),
    4: lambda x: x.flip(1),
    5: lambda x: x.transpose(1, 2),
    6: lambda x: x.transpose(1, 2).flip(2),
    7: lambda x: x.transpose(1, 2).flip(1, 2),
    8: lambda x: x.transpose(1, 2).flip(1),
}
MAX_RATIO = 8  # of an image's sides; only the middle of a longer one is resized: a sliver would become gigabytes

Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Images:
    """One part of a data set: N files, each known by its sha256, labels (N,) int64 in 0..K-1, and how they vary."""

    paths: list[Path]
    digests: list[str]  # hex sha256 of each file
    labels: NDArray[np.int64]
    preprocessing: Preprocessing
    augment: Augment = "none"
    views: int | None = None  # number of random views of each image, used in turn; None: a new one in every epoch
    seed: int = 0
    erase: float = 0.0  # chance that a box of a random part is erased
    crop_area: float = 0.35  # smallest share of the area that a random part has
    color_jitter: float = 0.0  # largest change of a random part's brightness, contrast and saturation, as a share

    @property
    def distinct(self) -> float:
        """The largest number of epochs in which every view of an image is different."""
        return 1 if self.augment == "none" else self.views or math.inf

    @property
    def repeats(self) -> bool:
        """Whether views repeat in several epochs, so that features can be computed once."""
        return self.augment in ("none", "flip") or self.views is not None

    def view(self, index: int, epoch: int) -> str:
        """Return the name of the view of an image in an epoch. Equal names mean equal pixels.

        It depends on the settings and on the image's content, not on its place in a split.
        """
        if self.augment == "none":
            return PLAIN
        name = f"{self.augment} {self.seed} {epoch % self.views if self.views else epoch}"
        if self.augment != "flip":
            own = {f.name: getattr(self, f.name) for f in fields(Images)[-3:] if getattr(self, f.name) != f.default}
            return " ".join([name, *(f"{setting} {value:g}" for setting, value in own.items())])
        return MIRRORED if random.Random(f"{name} {self.digests[index]}").random() < 0.5 else PLAIN

    def key(self, index: int, view: str) -> bytes:
        """Return 32 bytes that identify a view of an image by content."""
        digest = self.digests[index]
        return bytes.fromhex(digest) if view == PLAIN else hashlib.sha256(f"{digest} {view}".encode()).digest()

    def pixels(self, index: int, view: str) -> Tensor:
        """Return (crop, crop, 3) uint8. Raise FileError if the image cannot be read, or changed since it was hashed."""
        path, digest = self.paths[index], self.digests[index]
        try:
            data = images.read_image_file(path)
            if hashlib.sha256(data).hexdigest() != digest:
                raise ValueError("changed while it was in use; make a new split")
            image = decode(data)
        except ValueError as error:
            raise FileError(path, str(error)) from None
        if view in (PLAIN, MIRRORED):
            pixels = resize(image, self.preprocessing)
            return pixels.flip(1) if view == MIRRORED else pixels
        rng = random.Random(f"{view} {digest}")
        pixels = crop_randomly(image, self.preprocessing, rng, self.crop_area)
        if self.augment == "trivial":
            pixels = augment_trivially(pixels, rng)
        if self.color_jitter:
            pixels = jitter_colors(pixels, self.color_jitter, rng)
        return erase_box(pixels, self.preprocessing, rng) if rng.random() < self.erase else pixels


@dataclass(frozen=True)
class UnlistedImages(Images):
    """Files that no split lists. One that cannot be read is black; the reason is in `problems`, by its number."""

    problems: dict[int, str] = field(default_factory=dict)

    def pixels(self, index: int, view: str) -> Tensor:
        """Return (crop, crop, 3) uint8."""
        try:
            return resize(decode(images.read_image_file(self.paths[index])), self.preprocessing)
        except ValueError as error:
            self.problems[index] = str(error)
            return torch.zeros(self.preprocessing.crop, self.preprocessing.crop, 3, dtype=torch.uint8)


def decode(data: bytes) -> Tensor:
    """Return the pixels (3, H, W) uint8 of an image file in its EXIF orientation, channels last in memory.

    JPEGs in colour or gray are decoded by torchvision, four times as fast as Pillow and within 2 of its 255 levels; all
    else by Pillow.

    Raises:
        ValueError: it cannot be decoded; with the reason.
    """
    with images.convert_decoder_errors():
        image = images.open_image(data)
        if image.format == "JPEG" and image.mode in ("RGB", "L"):
            from torchvision.io import ImageReadMode, decode_jpeg

            coded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            with contextlib.suppress(RuntimeError):  # Pillow accepts more damaged files, and `data split` used Pillow
                # turned by us, because torchvision sees EXIF only where it comes before other segments of its kind
                decoded: Tensor = decode_jpeg(coded, mode=ImageReadMode.RGB)
                turn = UPRIGHT.get(images.read_orientation(image))
                return turn(decoded) if turn else decoded
        return torch.from_numpy(np.array(images.decode_image(image))).permute(2, 0, 1)


def resize(image: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Return the pixels (crop, crop, 3) uint8 of an image (3, H, W) uint8, by the preprocessing."""
    side, how = preprocessing.crop, preprocessing.interpolation
    if preprocessing.fit == "squash":
        return _resize(image, [side, side], how).permute(1, 2, 0)
    if preprocessing.fit == "pad":
        longest = max(image.shape[1:])
        size = [max(1, round(side * of / longest)) for of in image.shape[1:]]
        top, left = ((side - of) // 2 for of in size)
        square = mean_colour(preprocessing).expand(side, side, 3).contiguous()
        square[top : top + size[0], left : left + size[1]] = _resize(image, size, how).permute(1, 2, 0)
        return square
    short = min(image.shape[1:])
    image = _crop_middle(image, *(min(side, MAX_RATIO * short) for side in image.shape[1:]))
    size = [int(preprocessing.resize * side / short) for side in image.shape[1:]]
    image = _resize(image, size, preprocessing.interpolation)
    return _crop_middle(image, preprocessing.crop, preprocessing.crop).permute(1, 2, 0)


def crop_randomly(image: Tensor, preprocessing: Preprocessing, rng: random.Random, smallest: float = 0.35) -> Tensor:
    """Return (crop, crop, 3) uint8: a random crop of an image (3, H, W) uint8, mirrored half of the time.

    The crop has from this smallest share of the area to all of it, and a side ratio of 3/4 to 4/3, each drawn uniformly
    (the ratio's logarithm). Source: Szegedy et al. 2015 (arXiv:1409.4842), section 6, where the smallest is 8 %.
    """
    height, width = image.shape[1:]
    area = height * width * rng.uniform(smallest, 1)
    ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
    wide = max(1, min(width, round(math.sqrt(area * ratio))))
    high = max(1, min(height, round(math.sqrt(area / ratio))))
    left, top = rng.randint(0, width - wide), rng.randint(0, height - high)
    size = [preprocessing.crop, preprocessing.crop]
    pixels = _resize(image[:, top : top + high, left : left + wide], size, preprocessing.interpolation).permute(1, 2, 0)
    return pixels.flip(1) if rng.random() < 0.5 else pixels


# Source: Mueller & Hutter 2021 (arXiv:2103.10158), the wide space of table 1. An operation -> its largest strength, and
# a function of (image (3, H, W) uint8, strength from -largest to largest, or 0 to largest); 31 strengths.
OPERATIONS: dict[str, tuple[float, bool, Callable[[Any, float], Any]]] = {
    "identity": (0, False, lambda x, _: x),
    "shear x": (
        0.99,
        True,
        lambda x, m: v2().affine(x, 0.0, [0, 0], 1.0, [math.degrees(math.atan(m)), 0.0], center=[0, 0]),
    ),
    "shear y": (
        0.99,
        True,
        lambda x, m: v2().affine(x, 0.0, [0, 0], 1.0, [0.0, math.degrees(math.atan(m))], center=[0, 0]),
    ),
    "translate x": (32, True, lambda x, m: v2().affine(x, 0.0, [int(m), 0], 1.0, [0.0, 0.0])),
    "translate y": (32, True, lambda x, m: v2().affine(x, 0.0, [0, int(m)], 1.0, [0.0, 0.0])),
    "rotate": (135, True, lambda x, m: v2().rotate(x, m)),
    "brightness": (0.99, True, lambda x, m: v2().adjust_brightness(x, 1 + m)),
    "colour": (0.99, True, lambda x, m: v2().adjust_saturation(x, 1 + m)),
    "contrast": (0.99, True, lambda x, m: v2().adjust_contrast(x, 1 + m)),
    "sharpness": (0.99, True, lambda x, m: v2().adjust_sharpness(x, 1 + m)),
    "posterize": (6, False, lambda x, m: v2().posterize(x, 8 - round(m))),
    "solarize": (255, False, lambda x, m: v2().solarize(x, 255 - m)),
    "autocontrast": (0, False, lambda x, _: v2().autocontrast(x)),
    "equalize": (0, False, lambda x, _: v2().equalize(x)),
}
STRENGTHS = 31


def augment_trivially(pixels: Tensor, rng: random.Random) -> Tensor:
    """Return pixels (H, W, 3) uint8 after a random operation at a random strength, both uniform (TrivialAugment)."""
    largest, signed, operation = OPERATIONS[rng.choice([*OPERATIONS])]
    strength = largest * rng.randrange(STRENGTHS) / (STRENGTHS - 1) * (rng.choice((-1, 1)) if signed else 1)
    changed: Tensor = operation(pixels.permute(2, 0, 1), strength)
    return changed.permute(1, 2, 0)


def jitter_colors(pixels: Tensor, largest: float, rng: random.Random) -> Tensor:
    """Return pixels (H, W, 3) uint8 with brightness, contrast and saturation changed in random order.

    Each factor is drawn uniformly from 1 - largest to 1 + largest. Source: torchvision's ColorJitter.
    """
    changed = pixels.permute(2, 0, 1)
    for adjust in rng.sample((v2().adjust_brightness, v2().adjust_contrast, v2().adjust_saturation), 3):
        changed = adjust(changed, rng.uniform(1 - largest, 1 + largest))
    return changed.permute(1, 2, 0)


def erase_box(pixels: Tensor, preprocessing: Preprocessing, rng: random.Random) -> Tensor:
    """Return pixels (H, W, 3) uint8 with a random box of 2 to 33 % of the area in the mean colour.

    Source: Zhong et al. 2017 (arXiv:1708.04896); its ratio of sides is 0.3 to 3.3.
    """
    height, width = pixels.shape[:2]
    area, ratio = height * width * rng.uniform(0.02, 0.33), math.exp(rng.uniform(math.log(0.3), math.log(3.3)))
    high, wide = min(height, round(math.sqrt(area * ratio))), min(width, round(math.sqrt(area / ratio)))
    top, left = rng.randint(0, height - high), rng.randint(0, width - wide)
    erased = pixels.clone()
    erased[top : top + high, left : left + wide] = mean_colour(preprocessing)
    return erased


def mean_colour(preprocessing: Preprocessing) -> Tensor:
    """Return the mean colour of the preprocessing, (3,) uint8, which normalisation maps to about 0."""
    return (torch.tensor(preprocessing.mean) * 255).round().clamp(0, 255).to(torch.uint8)


def _crop_middle(image: Tensor, height: int, width: int) -> Tensor:
    # Python's round, to even, as torchvision's center_crop has it
    top, left = round((image.shape[1] - height) / 2), round((image.shape[2] - width) / 2)
    return image[:, top : top + height, left : left + width]


def _resize(image: Tensor, size: list[int], interpolation: Interpolation) -> Tensor:
    return F.interpolate(image[None], size, mode=interpolation, antialias=True)[0]


def map_in_order(
    work: Callable[[Job], Result], jobs: Iterable[Job], threads: int, ahead: int
) -> Iterator[tuple[Job, Result]]:
    """Yield each job and its result, in order, computed in threads. At most `ahead` jobs begin before their turn.

    Each thread computes without torch's own threads, so a result does not depend on their number.
    """
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    pending: deque[tuple[Job, Future[Result]]] = deque()
    try:
        for job in jobs:
            pending.append((job, pool.submit(work, job)))
            if len(pending) > ahead:
                job, future = pending.popleft()
                yield job, future.result()
        for job, future in pending:
            yield job, future.result()
    finally:
        pool.shutdown(cancel_futures=True)
