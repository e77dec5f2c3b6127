"""The features of a data set's images: taken from the feature cache, or computed into it once."""

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

from dlcv_cli.context import Context, Reporter, map_in_threads
from dlcv_cli.errors import DlcvError, format_bytes
from dlcv_cli.files import feature_cache
from dlcv_cli.files.disk import JSON, hash_json
from dlcv_cli.files.feature_cache import FeatureCache
from dlcv_cli.files.locks import hold_lock
from dlcv_cli.files.recipes import read_versions
from dlcv_cli.vision import batches
from dlcv_cli.vision.batches import Source
from dlcv_cli.vision.inference import DTYPES, FeatureExtractor, extract_in_threads
from dlcv_cli.vision.steps import SplitNetwork, hash_steps, measure_cost
from dlcv_cli.vision.transforms import Images

FREE_SHARE = 0.1  # of the free disk that cached features leave free
FORMAT = 3  # goes up when transforms.py, inference.py or steps.py compute otherwise


@dataclass(frozen=True)
class View:
    """One view of one image, which is to pass the frozen layers."""

    images: Images
    index: int
    name: str


class _NoSpaceError(Exception):
    """The features do not fit on the disk."""


@dataclass(frozen=True)
class FrozenLayers:
    """A network's frozen layers, and where and how they compute."""

    split: SplitNetwork
    arch: str
    device: torch.device
    precision: str
    threads: int

    def extractor(self, images: Images, first: int = 0) -> FeatureExtractor:
        """Return an extractor of the layers from that number on."""
        return FeatureExtractor([*self.split.frozen], images.preprocessing, self.device, self.precision, first)

    def place_keys(self, images: Images) -> list[bytes]:
        """Return a key for each place between the layers: what is computed up to there, to the last bit."""
        extractor = FeatureExtractor([], images.preprocessing, self.device, self.precision)
        device = self.device.type
        if device == "cuda":
            device = torch.cuda.get_device_name(self.device)
        elif device == "cpu":
            device = torch.backends.cpu.get_cpu_capability()
        versions = read_versions("torch", "torchvision", "pillow")
        start = {
            "preprocessing": images.preprocessing.to_json(),
            "precision": self.precision,
            "device": device,
            "fused": extractor.fused,
            "batch": [extractor.batch_size, extractor.spatial_batch_size],
            "versions": {name: version for name, version in versions.items() if name != "dlcv"},
            "format": FORMAT,
        }
        return hash_steps([*self.split.frozen], bytes.fromhex(hash_json(start)))


def open_sources(
    frozen: FrozenLayers, parts: Sequence[Images], epochs: Sequence[int], context: Context
) -> tuple[list[Source], JSON]:
    """Return a source for each part of a data set; its numbers are the same with and without the feature cache.

    Args:
        epochs: number of epochs in which each part is gone through.

    Returns:
        The sources, and what the metrics file says of the features.
    """
    report = context.reporter
    if not len(frozen.split.frozen):
        direct = [batches.build_image_source(images, frozen.extractor(images), frozen.threads) for images in parts]
        return direct, {"used": False, "why": "nothing frozen"}
    cost = measure_cost(frozen.split, parts[0].preprocessing.crop)
    size = math.prod(cost.shape) * DTYPES[frozen.precision].itemsize
    description: JSON = {"before": frozen.split.boundary, "bytes_per_image": size}
    report.note(
        f"frozen before {frozen.split.boundary}: {100 * cost.flops / cost.total_flops:.1f} % of the "
        f"{cost.total_flops / 1e9:.3g} GFLOP per image of a forward pass; features take {size:,} bytes per image"
    )
    repeats = [images.repeats for images in parts]
    views = _list_views([(images, count) for images, count, r in zip(parts, epochs, repeats, strict=True) if r])
    cached: tuple[FeatureCache, NDArray[Any]] | None = None
    if context.cache is None:
        why = "--no-cache"
        report.note("--no-cache: the features are computed again for each batch")
    else:
        cached, why, counts = _fill_cache(frozen, batches.get_row_shape(cost.shape), views, context.cache, report)
        description |= counts
    if not all(repeats):
        why = "each epoch sees another random part of each training image"
        report.note(f"{why}: those features are not cached; --views N would cache N views of each image")
    extractor: FeatureExtractor | None = None
    sources = []
    for images, r in zip(parts, repeats, strict=True):
        if cached and r:
            sources.append(_source_of_cache(*cached, images, frozen.device))
        else:
            extractor = extractor or frozen.extractor(images)  # one for all: it may copy the weights
            sources.append(batches.build_image_source(images, extractor, frozen.threads))
    return sources, {"used": cached is not None, **({"why": why} if why else {}), **description}


def _list_views(parts: Sequence[tuple[Images, int]]) -> dict[bytes, View]:
    """Return every view that the epochs of these parts see, by its key."""
    return {
        images.key(index, name): View(images, index, name)
        for images, epochs in parts
        for epoch in range(int(min(epochs, images.distinct)))
        for index in range(len(images.paths))
        for name in (images.view(index, epoch),)
    }


def _source_of_cache(cache: FeatureCache, rows: NDArray[Any], images: Images, device: torch.device) -> Source:
    def slots(epoch: int) -> NDArray[np.int64]:
        keys = (images.key(i, images.view(i, epoch)) for i in range(len(images.paths)))
        return np.array([cache.slots[key] for key in keys], np.int64)

    return batches.build_row_source(rows, slots, images.labels, device)


def _fill_cache(
    frozen: FrozenLayers, shape: tuple[int, ...], views: dict[bytes, View], folder: Path, report: Reporter
) -> tuple[tuple[FeatureCache, NDArray[Any]] | None, str, dict[str, int]]:
    """Return the feature cache with all views in it, and its rows; without one, why not; and counts of views."""
    images = next(iter(views.values())).images
    *earlier_keys, key = frozen.place_keys(images)
    cache = FeatureCache(feature_cache.locate_folder(folder, key))
    try:
        with hold_lock(
            feature_cache.locate_lock(cache.folder),
            lambda: report.note(f"waiting for another dlcv that is filling {cache.folder}"),
        ):
            _open_and_check(cache, [*views], report)
            with _dropping_if_empty(cache):
                if not cache.digests:
                    about = {"arch": frozen.arch, "before": frozen.split.boundary, "precision": frozen.precision}
                    cache.create(shape, frozen.precision, {**about, "image_size": images.preprocessing.crop})
                missing = {key: view for key, view in views.items() if key not in cache.slots}
                space = f", {_describe_space(cache, len(missing))}" if missing else ""
                share = f"{len(views) - len(missing):,} of {len(views):,} images are cached"
                report.note(f"feature cache {cache.name}: {share}{space}")
                if missing:
                    places = [feature_cache.locate_folder(folder, key) for key in earlier_keys]
                    _compute_missing(frozen, cache, places, missing, report)
                cache.mark_used()
                # mapped while no one else can drop it; what is mapped stays, whatever becomes of the files
                return (cache, cache.map_rows()), "", {"images": len(views), "computed": len(missing)}
    except (_NoSpaceError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            raise
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        why = "the disk is full" if full else str(error.strerror if isinstance(error, OSError) else error)
        report.warn(f"feature cache {cache.folder}: {why}; going on without it: features are computed for each batch")
        return None, why, {}


@contextlib.contextmanager
def _dropping_if_empty(cache: FeatureCache) -> Iterator[None]:
    """Leave no feature cache without entries behind if the block ends by an error."""
    try:
        yield
    except BaseException:
        if not cache.digests:
            with contextlib.suppress(OSError):
                cache.drop()
        raise


def _open_and_check(cache: FeatureCache, keys: Sequence[bytes], report: Reporter, drop: bool = True) -> None:
    """Open a feature cache and check the entries with these keys; if it is damaged, name it, drop it, go on empty."""
    try:
        if not cache.open():
            return
        rows, slots = cache.map_rows(), [cache.slots[key] for key in keys if key in cache.slots]
        sound = map_in_threads(lambda slot: cache.is_sound(rows, slot), slots, "checking cached features", report)
        batches.release_pages(rows)
        if all(sound):
            return
        problem = f"{cache.folder}: {sound.count(False):,} of {len(sound):,} entries damaged"
    except DlcvError as error:
        problem = str(error)
    report.warn(f"{problem}; {'dropped, ' if drop else ''}computing the features again")
    if drop:
        cache.drop()
    cache.forget()


def _describe_space(cache: FeatureCache, count: int) -> str:
    """Return the space that so many new entries need, and the disk has. Raise _NoSpaceError if it has too little."""
    need, free = count * cache.entry_bytes, shutil.disk_usage(cache.folder).free
    text = f"{format_bytes(need)} to add, {format_bytes(free)} free on its disk"
    if need > (1 - FREE_SHARE) * free:
        raise _NoSpaceError(text)
    return text


def _compute_missing(
    frozen: FrozenLayers, cache: FeatureCache, places: Sequence[Path], missing: dict[bytes, View], report: Reporter
) -> None:
    """Compute missing features, from those of earlier layers where another cache has them, and append them."""
    first, earlier = _open_latest(places, missing, report)
    rows = earlier.map_rows()
    begun = [key for key in missing if key in earlier.slots]
    new = [key for key in missing if key not in earlier.slots]
    if begun:
        where = f"feature cache {earlier.name}, before {earlier.metadata.get('before')}"
        report.note(f"{len(begun):,} images start from {where}")

    def load_rows(keys: Sequence[bytes]) -> Tensor:
        return batches.from_rows(rows[[earlier.slots[key] for key in keys]])

    def load_pixels(keys: Sequence[bytes]) -> Tensor:
        return torch.stack([missing[key].images.pixels(missing[key].index, missing[key].name) for key in keys])

    done = 0
    with cache.open_for_appending() as append:
        for at, keys, load in ((first, begun, load_rows), (0, new, load_pixels)):
            if not keys:
                continue
            extractor = frozen.extractor(missing[keys[0]].images, at)
            for batch, x in extract_in_threads(
                extractor, batches.split_batches(keys, extractor.batch_size), load, frozen.threads
            ):
                append(batch, batches.to_rows(x))
                done += len(batch)
                report.progress("frozen layers", done, len(missing))


def _open_latest(places: Sequence[Path], missing: dict[bytes, View], report: Reporter) -> tuple[int, FeatureCache]:
    """Return the cache of the latest place between the layers that has any of the views, or an empty one."""
    for at, folder in reversed(list(enumerate(places))):
        cache = FeatureCache(folder)
        _open_and_check(cache, [*missing], report, drop=False)
        if any(key in cache.slots for key in missing):
            cache.mark_used()
            return at, cache
    return 0, FeatureCache(Path())
