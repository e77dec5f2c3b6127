"""Chooses where to compute, opens a checkpoint, loads images and computes their logits (N images, K classes)."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dlcv_cli.config import Machine, Precision
from dlcv_cli.context import Context, Reporter, count_processors, list_facts
from dlcv_cli.errors import DlcvError, FileError, list_names
from dlcv_cli.files import tensors
from dlcv_cli.files.disk import JSON
from dlcv_cli.files.recipes import identify_run, read_versions
from dlcv_cli.files.splits import Split
from dlcv_cli.results.calibration import Calibration, read_calibration
from dlcv_cli.studies.images.features import FrozenLayers, open_sources
from dlcv_cli.studies.images.study import require_images
from dlcv_cli.vision import inference
from dlcv_cli.vision.architectures import ARCHITECTURES
from dlcv_cli.vision.batches import build_image_source
from dlcv_cli.vision.inference import FeatureExtractor
from dlcv_cli.vision.models import build_loaded_network, list_top_layers, unfreeze
from dlcv_cli.vision.preprocessing import Preprocessing
from dlcv_cli.vision.steps import SplitNetwork, require_size, split_at_frozen
from dlcv_cli.vision.training import predict
from dlcv_cli.vision.transforms import Images, UnlistedImages

PACKAGES = ("torch", "torchvision", "numpy", "pillow", "safetensors")  # whose versions image files record
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


@dataclass(frozen=True)
class ImageCheckpoint:
    """A checkpoint of an image network, ready to compute."""

    path: Path
    network: nn.Module
    arch: str
    trained: tuple[str, ...]  # the layers that were trained
    precision: Precision  # of the arithmetic it was trained in
    classes: list[str]
    preprocessing: Preprocessing
    calibration: Calibration | None = None
    tries: int = 0  # settings that were tried on the validation part
    fold: int | None = None  # of the split, where that has several

    @property
    def temperature(self) -> float:
        """The number by which the network's logits are divided."""
        return self.calibration.temperature if self.calibration else 1.0


def open_checkpoint(path: Path) -> ImageCheckpoint:
    """Read an image checkpoint. Raise FileError if anything in it is wrong."""
    stored = tensors.read(path, tensors.CHECKPOINT)
    metadata, arch, classes = stored.metadata, read_arch(path, stored.metadata), read_classes(path, stored.metadata)
    arrays: dict[str, Tensor] = {name: torch.from_numpy(array) for name, array in stored.arrays.items()}
    try:
        network = build_loaded_network(ARCHITECTURES[arch], len(classes), arrays)
        preprocessing = Preprocessing.from_json(metadata.get("preprocessing"))
        # checkpoints of the first versions say neither: in all of them every layer was trained, in float32
        trained, precision = metadata.get("trained", list_top_layers(network)), metadata.get("precision", "float32")
        unfreeze(network, trained)
        require_size(network, ARCHITECTURES[arch], preprocessing.crop)
        inference.DTYPES[precision]
    except (ValueError, TypeError, KeyError, DlcvError) as error:
        raise FileError(path, f"damaged: {error}") from None
    calibration = read_calibration(path, metadata)
    tries = metadata.get("tries")
    return ImageCheckpoint(
        path, network, arch, tuple(trained), precision, classes, preprocessing, calibration,
        tries if type(tries) is int else 0, identify_run(metadata).fold,
    )  # fmt: skip


def read_arch(path: Path, metadata: JSON) -> str:
    """Return the name of a checkpoint's network. Raise FileError if it is none of ours."""
    arch = metadata.get("arch")
    if not isinstance(arch, str) or arch not in ARCHITECTURES:
        raise FileError(path, f"holds no image network that this version knows ({metadata.get('stage')})")
    return arch


def read_classes(path: Path, metadata: JSON) -> list[str]:
    """Return the names of a checkpoint's classes. Raise FileError if its metadata lists none."""
    classes = metadata.get("classes")
    if not isinstance(classes, list) or not classes or not all(isinstance(c, str) for c in classes):
        raise FileError(path, "damaged: its metadata lists no classes")
    return classes


def require_classes(checkpoint: Path, trained: list[str], split: Path, expected: list[str]) -> None:
    """Raise DlcvError, with the difference, unless both list the same classes in the same order."""
    if trained == expected:
        return
    differences = ((checkpoint, {*trained} - {*expected}), (split, {*expected} - {*trained}))
    only = [f"only in {path}: {list_names(map(repr, sorted(names)))}" for path, names in differences if names]
    raise DlcvError(
        f"{checkpoint} was trained on other classes than {split} has: "
        f"{'; '.join(only) or 'the same names in another order'}"
    )


def load_part(split: Split, part: str, preprocessing: Preprocessing, reporter: Reporter) -> Images:
    """Return the images of one part of a split, after checking each file against its sha256.

    Raises:
        FileError: the part is empty, or images are missing or changed; names them.
    """
    paths, examples = require_images(split, part, reporter), split.parts[part]
    labels = np.array([e.label for e in examples], np.int64)
    return Images(paths, [e.sha256 for e in examples], labels, preprocessing)


def place_and_split(network: nn.Module, arch: str, trained: Sequence[str], device: torch.device) -> SplitNetwork:
    """Move a network to its device, let these layers train, and split it before the first that trains or is random."""
    unfreeze(network, trained)
    network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # stub knows no module form
    return split_at_frozen(network, ARCHITECTURES[arch])


def prepare(machine: Machine) -> tuple[torch.device, int]:
    """Return (device, threads) to compute with; sets torch's threads, and its deterministic algorithms.

    Raises:
        DlcvError: this machine has no such device.
    """
    # cuBLAS repeats itself only with a fixed workspace; read when CUDA starts
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    threads = machine.threads or count_processors()
    torch.set_num_threads(threads)
    torch.set_deterministic_debug_mode("warn")  # as use_deterministic_algorithms, without importing the compiler
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # missing in the stubs
    _keep_memory()
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if machine.device == "auto":
        return torch.device(next(name for name, is_there in available.items() if is_there)), threads
    if not available[machine.device]:
        raise DlcvError(f"--device {machine.device}: this machine has none; use --device auto")
    return torch.device(machine.device), threads


def _keep_memory() -> None:
    """Have glibc keep large blocks for the next step, where by default it returns each and allocates it again."""
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if mallopt:
            mallopt(_M_MMAP_THRESHOLD, 2**30)
            mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def describe_arithmetic(device: torch.device, threads: int, precision: str) -> JSON:
    """Return what, beside the recipe, a training's last bits depend on."""
    processor = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    machine = {"device": device.type, "processor": processor, "threads": threads, "precision": precision}
    return {**machine, **read_versions(*PACKAGES)}


class Predictor:
    """Computes a checkpoint's logits on the context's device, from cached features if the context has a cache."""

    def __init__(self, checkpoint: ImageCheckpoint, context: Context) -> None:
        self.checkpoint, self.context = checkpoint, context
        self.device, self.threads = prepare(context.machine)
        self.precision: str = checkpoint.precision
        if self.precision == "bfloat16" and not inference.has_bfloat16(self.device):
            self.precision = "float32"
            context.reporter.note(
                f"{checkpoint.path} was trained in bfloat16, which {self.device} does not support: using float32"
            )
        context.reporter.detail(list_facts(describe_arithmetic(self.device, self.threads, self.precision)))
        split = place_and_split(checkpoint.network, checkpoint.arch, checkpoint.trained, self.device)
        self._frozen = FrozenLayers(split, checkpoint.arch, self.device, self.precision, self.threads)
        self._features: JSON = {}

    def predict(self, images: Images) -> Iterator[Tensor]:
        """Yield logits (n, K) float32 on the CPU, batch by batch in the order of the images."""
        reporter = self.context.reporter
        (source,), self._features = open_sources(self._frozen, (images,), (1,), self.context)
        done = 0
        for logits in predict(self._frozen.split.tail, source, self.precision):
            done += len(logits)
            reporter.progress(f"predicting with {self.checkpoint.path.name}", done, len(images.paths))
            yield logits.cpu() / self.checkpoint.temperature

    def predict_files(self, paths: Sequence[Path]) -> Iterator[tuple[Path, Tensor | str]]:
        """Yield each file with its logits (K,) float32, or the reason why it cannot be read. Uses no cache."""
        count = len(paths)
        images = UnlistedImages([*paths], [""] * count, np.zeros(count, np.int64), self.checkpoint.preprocessing)
        source, temperature = build_image_source(images, self._extractor, self.threads), self.checkpoint.temperature
        rows = (
            row
            for logits in predict(self._frozen.split.tail, source, self.precision)
            for row in logits.cpu() / temperature
        )
        for number, (path, row) in enumerate(zip(paths, rows, strict=True)):
            yield path, images.problems.get(number, row)

    @cached_property
    def _extractor(self) -> FeatureExtractor:
        return FeatureExtractor(
            [*self._frozen.split.frozen], self.checkpoint.preprocessing, self.device, self.precision
        )

    def describe(self) -> dict[str, Any]:
        """Return what a `run` record says of the computation; `features` is about the last `predict`."""
        machine = {"device": str(self.device), "threads": self.threads, "precision": self.precision}
        return {**machine, "features": self._features}
