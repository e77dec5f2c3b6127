"""Near-duplicates: copies of one image that were saved anew, resized, mirrored or brightened. Letters: N images.

Two images are compared twice. First the low frequencies of the whole, in which few different images are alike. Each
frequency is weighted by its distance from zero, since the amplitudes of photographs fall with its inverse (Field 1987,
doi:10.1364/JOSAA.4.002379): so details count as much as the rough layout. Then the colours, tile by tile, which tell
apart what shares background and frame: two motorcycles that one studio photographed. Crops are not detected.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dlcv_cli.errors import DlcvError

SIDE = 32  # of a signature, in pixels; smaller images are not judged
FREQUENCIES = 16  # in each direction
FLAT = 4.0  # standard deviation of the pixels' values, 0..255, below which nothing can be recognised
SIMILAR = 0.95  # measured by benchmarks/near_duplicates.py, as is the next
TILE, DIFFERENT = 4, 0.35  # side of a tile in pixels; its root mean square difference, in standard deviations
MARGIN = 1e-4
LIMIT = 200_000  # pairs, beyond which images are alike by nature
BLOCK = 1024  # images, or candidates, that are computed at once
COLUMNS = 4 * BLOCK

Signatures = NDArray[np.uint8]
Floats = NDArray[np.float64]


@dataclass(frozen=True, order=True)
class Pair:
    """Two images of a list by their places, first < second; similarity is in SIMILAR..1."""

    first: int
    second: int
    similarity: float


def make_signature(image: Image.Image) -> Signatures | None:
    """Return an RGB image reduced to (SIDE, SIDE, 3) uint8; None if it is smaller or has one colour: not judged."""
    if min(image.size) < SIDE:
        return None
    # in two steps, which takes half the time and changes little
    signature = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=2.0))
    return signature if signature.std() >= FLAT else None


def find_pairs(signatures: Sequence[Signatures]) -> list[Pair]:
    """Return the pairs of near-duplicates among N signatures, in order.

    Time grows with N squared: on one core 0.7 s for 8,677 images and 6.5 s for 30,000, so 75 s for 100,000. Memory
    grows with N: 7 KB an image beside the signatures themselves, and 100 MB.

    Raises:
        DlcvError: there are more than LIMIT.
    """
    if len(signatures) < 2:
        return []
    pairs: list[Pair] = []
    stacked = np.stack(signatures)
    for i, j in _propose(stacked):
        for at in range(0, len(i), BLOCK):
            first, second = i[at : at + BLOCK], j[at : at + BLOCK]
            similarities = _compare(stacked[first], stacked[second])
            places = zip(first.tolist(), second.tolist(), similarities.tolist(), strict=True)
            pairs += [Pair(*own) for own in places if own[-1] >= SIMILAR]
            if len(pairs) > LIMIT:
                raise DlcvError(f"more than {LIMIT:,} pairs of images are alike")
    return sorted(pairs)


def _propose(signatures: Signatures) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Yield the places (P,) of pairs of images with similar frequencies, in float32, which may be off by MARGIN.

    Mirroring an image changes the sign of the odd horizontal frequencies, and nothing else.
    """
    count = len(signatures)
    blocks = [_measure_frequencies(signatures[at : at + BLOCK]) for at in range(0, count, BLOCK)]
    even, odd = (np.concatenate([part.astype(np.float32) for part in own]) for own in zip(*blocks, strict=True))
    for row in range(0, count, BLOCK):
        for column in range(row, count, COLUMNS):
            rows, columns = slice(row, row + BLOCK), slice(column, column + COLUMNS)
            similarities, of_odd = even[rows] @ even[columns].T, odd[rows] @ odd[columns].T
            similarities += np.abs(of_odd, out=of_odd)
            i, j = np.nonzero(similarities >= SIMILAR - MARGIN)
            later = i + row < j + column
            yield i[later] + row, j[later] + column


def _measure_frequencies(signatures: Signatures) -> tuple[Floats, Floats]:
    """Return the weighted cosine transform of gray images (N, SIDE, SIDE, 3), by even and odd horizontal frequency.

    The two together have length 1, or 0.
    """
    gray = signatures @ np.array([0.299, 0.587, 0.114])
    frequency = np.arange(FREQUENCIES)
    basis = np.cos(np.pi / SIDE * frequency[:, None] * (np.arange(SIDE) + 0.5))
    basis[0] /= np.sqrt(2)
    values = (basis @ gray @ basis.T) * np.hypot(frequency[:, None], frequency)
    values /= np.maximum(np.linalg.norm(values, axis=(1, 2), keepdims=True), 1e-6)
    count = len(signatures)
    return values[:, :, ::2].reshape(count, -1), values[:, :, 1::2].reshape(count, -1)


def _compare(first: Signatures, second: Signatures) -> Floats:
    """Return the similarity (P,) of the frequencies, 0..1, rounded; 0 where a tile differs too much."""
    frequencies = zip(_measure_frequencies(first), _measure_frequencies(second), strict=True)
    even, odd = ((own * other).sum(1) for own, other in frequencies)
    second = np.where((odd < 0)[:, None, None, None], second[:, :, ::-1], second)
    squared = (_standardize(first) - _standardize(second)) ** 2
    tiles = SIDE // TILE
    means = squared.reshape(-1, tiles, TILE, tiles, TILE, 3).mean((2, 4, 5)).reshape(len(first), -1)
    return np.where(means.max(1) <= DIFFERENT**2, (even + np.abs(odd)).clip(0, 1).round(4), 0)


def _standardize(signatures: Signatures) -> Floats:
    """Return values that do not change with brightness or contrast."""
    centred = signatures - signatures.mean((1, 2, 3), keepdims=True)
    return np.asarray(centred / centred.std((1, 2, 3), keepdims=True))
