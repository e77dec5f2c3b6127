"""Pays for the frozen layers once: what they make of each image is taken from the store, or computed into it."""

from __future__ import annotations

import contextlib
import errno
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlcv_cli.context import Reporter, map_in_threads
from dlcv_cli.errors import DlcvError, format_bytes
from dlcv_cli.files import feature_cache as stores
from dlcv_cli.files.disk import JSON, hash_json
from dlcv_cli.files.feature_cache import FeatureCache
from dlcv_cli.files.locks import hold_lock
from dlcv_cli.files.recipes import installed_versions
from dlcv_cli.vision.batches import Source, computed, from_rows, groups, kept, let_go, to_rows
from dlcv_cli.vision.inference import DTYPES, Forward, outputs
from dlcv_cli.vision.steps import Cut, chain, work
from dlcv_cli.vision.transforms import Images

SPARE = 0.1  # of the free disk that a store leaves free


@dataclass(frozen=True)
class Wanted:
    """One picture that is to pass the frozen layers: an image of a part, and how it is seen."""

    images: Images
    index: int
    view: str


class _DoesNotFitError(Exception):
    """The store has no place on the disk."""


@dataclass(frozen=True)
class Frozen:
    """A network's frozen layers, where and how they compute, and where what they give is kept (None: nowhere)."""

    parts: Cut
    arch: str
    device: torch.device
    precision: str
    threads: int
    cache: Path | None

    def forward(self, images: Images, begin: int = 0) -> Forward:
        """The layers from the one of that number on."""
        return Forward(list(self.parts.prefix)[begin:], images.preprocessing, self.device, self.precision)


def sources(
    frozen: Frozen, parties: Sequence[Images], epochs: Sequence[int], report: Reporter
) -> tuple[list[Source], JSON]:
    """A source for each part of a data set, with or without the store: the numbers are the same to the last bit.

    Args:
        epochs: how many epochs each part is gone through.

    Returns:
        The sources, and what the metrics say of the store.
    """
    if not len(frozen.parts.prefix):
        empty = frozen.forward(parties[0])
        return [computed(images, empty, frozen.threads) for images in parties], {"used": False, "why": "nothing frozen"}
    cost = work(frozen.parts, parties[0].preprocessing.crop)
    size = math.prod(cost.shape) * DTYPES[frozen.precision].itemsize
    about = {"before": frozen.parts.name, "bytes_per_image": size}
    report.note(
        f"frozen before {frozen.parts.name}: {100 * cost.flops / cost.total_flops:.1f} % of the "
        f"{cost.total_flops / 1e9:.3g} GFLOP an image takes forward; {size:,} bytes an image to keep"
    )
    storable = [images.augment != "crop-flip" or images.views is not None for images in parties]
    chosen = [(images, count) for images, count, may in zip(parties, epochs, storable, strict=True) if may]
    if frozen.cache is None:
        why = "--no-cache"
        report.note("--no-cache: the frozen layers are computed anew for each batch")
        found = None
    else:
        found, why, counts = _filled(frozen, cost.shape, chosen, frozen.cache, report)
        about |= counts
    if not all(storable):
        why = "every epoch another random part of each training image"
        report.note(f"{why}: those are computed anew each time; --views N would keep N views of each")
    anew = None if found and all(storable) else frozen.forward(parties[0])
    made = [
        _from_store(frozen, *found, images) if found and may else computed(images, anew, frozen.threads)  # type: ignore[arg-type]
        for images, may in zip(parties, storable, strict=True)
    ]
    return made, {"used": found is not None, **({"why": why} if why else {}), **about}


def _from_store(frozen: Frozen, store: FeatureCache, rows: NDArray[Any], images: Images) -> Source:
    def slots(epoch: int) -> NDArray[np.int64]:
        keys = (images.key(i, images.view(i, epoch)) for i in range(len(images.paths)))
        return np.array([store.slots[key] for key in keys], np.int64)

    return kept(rows, slots, images.labels, frozen.device)


def _filled(
    frozen: Frozen, shape: tuple[int, ...], chosen: Sequence[tuple[Images, int]], cache: Path, report: Reporter
) -> tuple[tuple[FeatureCache, NDArray[Any]] | None, str, dict[str, int]]:
    """The store with all that is wanted in it, mapped; without one, why not; how many were there and were computed."""
    wanted = {
        images.key(index, view): Wanted(images, index, view)
        for images, epochs in chosen
        for epoch in range(int(min(epochs, images.distinct)))
        for index in range(len(images.paths))
        for view in (images.view(index, epoch),)
    }
    keys = chain(frozen.parts.prefix, bytes.fromhex(hash_json(_beginning(frozen, chosen[0][0]))))
    store = FeatureCache(stores.folder_for(cache, keys[-1]))
    try:
        with hold_lock(
            stores.lock_path(store.folder), lambda: report.note(f"waiting for another dlcv that fills {store.folder}")
        ):
            _open_sound(store, [*wanted], report)
            with _dropped_if_empty(store):
                if not store.digests:
                    about = {"arch": frozen.arch, "before": frozen.parts.name, "precision": frozen.precision}
                    rows = (*shape[1:], shape[0])  # as sources.to_rows lays them
                    store.begin(rows, frozen.precision, {**about, "image_size": chosen[0][0].preprocessing.crop})
                missing = {key: item for key, item in wanted.items() if key not in store.slots}
                said = f"store {store.name}: {len(wanted) - len(missing):,} of {len(wanted):,} are there"
                if missing:
                    said += f", {_space(store, len(missing))}"
                report.note(said)
                if missing:
                    _fill(frozen, store, [stores.folder_for(cache, key) for key in keys[:-1]], missing, report)
                store.mark_used()
                # mapped while no one else can drop it; what is mapped stays, whatever becomes of the files
                return (store, store.rows()), "", {"images": len(wanted), "computed": len(missing)}
    except (_DoesNotFitError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            raise
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        why = "the disk is full" if full else str(error.strerror if isinstance(error, OSError) else error)
        report.warn(f"store {store.folder}: {why}; going on without it: the frozen layers are computed for each batch")
        return None, why, {}


@contextlib.contextmanager
def _dropped_if_empty(store: FeatureCache) -> Iterator[None]:
    """Leaves no store without records behind when the block ends by an error."""
    try:
        yield
    except BaseException:
        if not store.digests:
            with contextlib.suppress(OSError):
                store.drop()
        raise


def _beginning(frozen: Frozen, images: Images) -> JSON:
    """All beside images and weights that the last bits of an output depend on."""
    forward = Forward([], images.preprocessing, frozen.device, frozen.precision)
    device = frozen.device.type
    if device == "cuda":
        device = torch.cuda.get_device_name(frozen.device)
    elif device == "cpu":
        device = torch.backends.cpu.get_cpu_capability()
    return {
        "preprocessing": images.preprocessing.to_json(),
        "precision": frozen.precision,
        "device": device,
        "fused": forward.fused,
        "group": [forward.group, forward.few],
        "versions": {
            name: v for name, v in installed_versions("torch", "torchvision", "pillow").items() if name != "dlcv"
        },
        "format": 2,  # goes up when views.py or forward.py compute otherwise
    }


def _open_sound(store: FeatureCache, keys: Sequence[bytes], report: Reporter, drop: bool = True) -> None:
    """Opens a store and checks those of its records that are wanted; a damaged one is named, dropped, and empty."""
    try:
        if not store.open():
            return
        rows, slots = store.rows(), [store.slots[key] for key in keys if key in store.slots]
        sound = map_in_threads(lambda slot: store.is_sound(rows, slot), slots, "checking the store", report)
        let_go(rows)
        if all(sound):
            return
        problem = f"{store.folder}: {sound.count(False):,} of {len(sound):,} records damaged"
    except DlcvError as error:
        problem = str(error)
    report.warn(f"{problem}; {'dropped, ' if drop else ''}computing anew")
    if drop:
        store.drop()
    store.forget()


def _space(store: FeatureCache, count: int) -> str:
    """What so many records more need, and what the disk has. _DoesNotFitError when it has too little."""
    need, free = count * store.entry_bytes, shutil.disk_usage(store.folder).free
    said = f"{format_bytes(need)} to add, {format_bytes(free)} free on its disk"
    if need > (1 - SPARE) * free:
        raise _DoesNotFitError(said)
    return said


def _fill(
    frozen: Frozen, store: FeatureCache, before: Sequence[Path], missing: dict[bytes, Wanted], report: Reporter
) -> None:
    """Computes what is missing, from the outputs of earlier layers where another store has them, and keeps it."""
    begin, earlier = _earlier(before, missing, report)
    rows = earlier.rows()
    there = [key for key in missing if key in earlier.slots]
    if there:
        report.note(f"{len(there):,} go on from what store {earlier.name} has before {earlier.metadata.get('before')}")

    def load_rows(keys: Sequence[bytes]) -> Tensor:
        return from_rows(rows[[earlier.slots[key] for key in keys]])

    def load_pixels(keys: Sequence[bytes]) -> Tensor:
        return torch.stack([missing[key].images.pixels(missing[key].index, missing[key].view) for key in keys])

    done = 0
    rest = [key for key in missing if key not in earlier.slots]
    with store.appending() as append:
        for first, keys, load in ((begin, there, load_rows), (0, rest, load_pixels)):
            if not keys:
                continue
            forward = frozen.forward(missing[keys[0]].images, first)
            for group, x in outputs(forward, groups(keys, forward.group), load, frozen.threads):
                append(group, to_rows(x))
                done += len(group)
                report.progress("frozen layers", done, len(missing))


def _earlier(before: Sequence[Path], missing: dict[bytes, Wanted], report: Reporter) -> tuple[int, FeatureCache]:
    """The store of the latest earlier place in the prefix that has some of what is missing, or an empty one."""
    for begin, folder in reversed(list(enumerate(before))):
        store = FeatureCache(folder)
        _open_sound(store, [*missing], report, drop=False)
        if any(key in store.slots for key in missing):
            store.mark_used()
            return begin, store
    return 0, FeatureCache(Path())
