"""Where a training's batches come from: images decoded for each, frozen layers computed for each, or outputs kept.

Letters: N images, C channels, H and W pixels.
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

from dlcv_cli.vision.inference import Forward, Item, outputs
from dlcv_cli.vision.transforms import Images

Order = NDArray[np.int64]
Rows = NDArray[np.int16] | NDArray[np.float32]


@dataclass(frozen=True)
class Source:
    """One part of a data set as it enters the layers that train."""

    labels: NDArray[np.int64]  # (N,)
    # (order of images, images a batch, epoch) -> x (n, ...) on the device, batch after batch
    batches: Callable[[Order, int, int], Iterator[Tensor]]

    def __len__(self) -> int:
        return len(self.labels)


def computed(images: Images, forward: Forward, threads: int) -> Source:
    """Images decoded, and frozen layers computed, anew for each batch."""

    def load(group: Sequence[tuple[int, str]]) -> Tensor:
        return torch.stack([images.pixels(index, view) for index, view in group])

    def batches(order: Order, batch_size: int, epoch: int) -> Iterator[Tensor]:
        seen = groups([(int(i), images.view(int(i), epoch)) for i in order], batch_size)
        if not forward.in_threads:
            yield from (x for _, x in outputs(forward, seen, load, threads))
            return
        for batch in seen:  # no batch ahead: the threads would take the training step's cores from it
            found = outputs(forward, groups(batch, forward.group), load, threads)
            yield torch.cat([x for _, x in found])

    return Source(images.labels, batches)


def kept(
    rows: Rows, slots: Callable[[int], NDArray[np.int64]], labels: NDArray[np.int64], device: torch.device
) -> Source:
    """Outputs that are there already, gathered from a map.

    Args:
        rows: one row an output, as `to_rows` makes them.
        slots: epoch -> the row of each image, (N,).
    """

    def batches(order: Order, batch_size: int, epoch: int) -> Iterator[Tensor]:
        here = slots(epoch)[order]
        for at in range(0, len(order), batch_size):
            x = from_rows(rows[here[at : at + batch_size]])
            let_go(rows)
            if device.type == "cuda":
                x = x.pin_memory()
            yield x.to(device, non_blocking=True)

    return Source(labels, batches)


def let_go(rows: NDArray[Any]) -> None:
    """Pages of a map that have been read stay in the system's cache, but no longer count as this process's memory."""
    if isinstance(rows, np.memmap) and hasattr(mmap, "MADV_DONTNEED"):
        rows._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]  # missing in the stubs


def to_rows(x: Tensor) -> Rows:
    """(N, C, H, W) or (N, C), float32 or bfloat16 -> (N, H, W, C) or (N, C), bfloat16 as the int16 of its bits."""
    x = (x.permute(0, 2, 3, 1) if x.dim() == 4 else x).contiguous().cpu()
    rows: Rows = (x.view(torch.int16) if x.dtype == torch.bfloat16 else x).numpy()
    return rows


def from_rows(rows: Rows) -> Tensor:
    """What `to_rows` was given; four-dimensional ones are channels last in memory."""
    x = torch.from_numpy(rows)
    x = x.view(torch.bfloat16) if x.dtype == torch.int16 else x
    return x.permute(0, 3, 1, 2) if x.dim() == 4 else x


def groups(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    """The items in groups of that size; the last may be short."""
    return [items[i : i + size] for i in range(0, len(items), size)]
