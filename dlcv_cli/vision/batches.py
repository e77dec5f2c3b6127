"""Sources of batches: images or features computed for each batch, or cached features.

Letters: N images, C channels, H and W pixels, T tokens, D features of a token.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlcv_cli.vision.inference import FeatureExtractor, Item, extract_in_threads, lay_out
from dlcv_cli.vision.transforms import Images

Order = NDArray[np.int64]
Rows = NDArray[np.int16] | NDArray[np.float32]


@dataclass(frozen=True)
class Source:
    """One part of a data set, as input of the tail."""

    labels: NDArray[np.int64]  # (N,)
    # (order of images, batch size, epoch) -> one x (n, ...) on the device per batch
    batches: Callable[[Order, int, int], Iterator[Tensor]]

    def __len__(self) -> int:
        return len(self.labels)


def build_image_source(images: Images, extractor: FeatureExtractor, threads: int) -> Source:
    """Return a source that decodes images and computes their features for each batch."""

    def load(batch: Sequence[tuple[int, str]]) -> Tensor:
        return torch.stack([images.pixels(index, view) for index, view in batch])

    def batches(order: Order, batch_size: int, epoch: int) -> Iterator[Tensor]:
        views = split_batches([(int(i), images.view(int(i), epoch)) for i in order], batch_size)
        if not extractor.in_threads:
            yield from (x for _, x in extract_in_threads(extractor, views, load, threads))
            return
        for batch in views:  # none ahead of its time: the threads would take cores from the training step
            pieces = extract_in_threads(extractor, split_batches(batch, extractor.batch_size), load, threads)
            yield lay_out(torch.cat([x for _, x in pieces]))

    return Source(images.labels, batches)


def build_row_source(
    rows: Rows, slots: Callable[[int], NDArray[np.int64]], labels: NDArray[np.int64], device: torch.device
) -> Source:
    """Return a source that gathers cached features from a memory map.

    Args:
        rows: one row per image or view, as `to_rows` returns them.
        slots: epoch -> number of the row of each image, (N,).
    """

    def batches(order: Order, batch_size: int, epoch: int) -> Iterator[Tensor]:
        ordered = slots(epoch)[order]
        for begin in range(0, len(order), batch_size):
            x = from_rows(rows[ordered[begin : begin + batch_size]])
            release_pages(rows)
            if device.type == "cuda":
                x = x.pin_memory()
            yield x.to(device, non_blocking=True)

    return Source(labels, batches)


def release_pages(rows: NDArray[Any]) -> None:
    """Release the pages of a memory map that were read. They stay in the system's cache, not in this process."""
    if isinstance(rows, np.memmap) and hasattr(mmap, "MADV_DONTNEED"):
        rows._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]  # missing in the stubs


def get_row_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of the row for one image's features (C, H, W), (T, D) or (C,): channels last."""
    return (*shape[1:], shape[0]) if len(shape) == 3 else tuple(shape)


def to_rows(x: Tensor) -> Rows:
    """Return (N, C, H, W), (N, T, D) or (N, C) as rows (N, H, W, C), (N, T, D) or (N, C); bfloat16 as int16 bits."""
    x = (x.permute(0, 2, 3, 1) if x.dim() == 4 else x).contiguous().cpu()
    rows: Rows = (x.view(torch.int16) if x.dtype == torch.bfloat16 else x).numpy()
    return rows


def from_rows(rows: Rows) -> Tensor:
    """Return features from rows of `to_rows`; with four dimensions, channels last in memory."""
    x = torch.from_numpy(rows)
    x = x.view(torch.bfloat16) if x.dtype == torch.int16 else x
    return x.permute(0, 3, 1, 2) if x.dim() == 4 else x


def split_batches(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    """Return the items in batches of this size. The last may be smaller."""
    return [items[i : i + size] for i in range(0, len(items), size)]
