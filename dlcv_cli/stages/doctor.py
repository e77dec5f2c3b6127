"""`doctor`: what dlcv has to work with on this machine, and whether it computes as it should.

Whatever may be broken is imported inside the check that uses it, so that the check can say so. Uses no network.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dlcv_cli.config import GenConfig, Machine, SeqTrainConfig
from dlcv_cli.context import Context, count_processors
from dlcv_cli.errors import format_bytes
from dlcv_cli.files.disk import find_mount_point

Mark = Literal["ok", "warning", "problem"]
AGAIN = "install dlcv again, in a new virtual environment"
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # Linux: microseconds of processor time, or max, and in how many
GPU = Path("/dev/nvidia0")  # there if the system has a driver for an NVIDIA GPU
NEEDED = 3_000_000_000  # bytes that fine-tuning VGG16 writes: its weights, a checkpoint and a snapshot
TOLERANCE = 1e-4  # largest error, as a share of the largest value; float32 in another order of sums gives about 1e-6
IMAGES, SEQUENCES, HIDDEN = 16, 64, 8  # of the fixed computations


@dataclass(frozen=True)
class Check:
    """What was seen, and what to do about it unless it is ok. `values` has the same for programs."""

    mark: Mark
    text: str
    remedy: str = ""
    values: dict[str, Any] = field(default_factory=dict)


def examine(context: Context) -> Iterator[tuple[str, Check]]:
    """Yield the name and outcome of each check, in the order of CHECKS; one that fails is a problem, no error."""
    for name, check in CHECKS.items():
        try:
            yield name, check(context)
        except Exception as error:  # of any kind: to say what is broken is what this is for
            yield name, Check("problem", " ".join(f"{type(error).__name__}: {error}".split()), AGAIN)


def check_versions(_: Context) -> Check:
    """Compare the installed packages with what dlcv requires."""
    versions = {"dlcv": importlib.metadata.version("dlcv"), "python": platform.python_version()}
    wrong = []
    for requirement in importlib.metadata.requires("dlcv") or ():
        match = re.fullmatch(r"([\w.-]+?)\s*>=\s*([\d.]+)", requirement)  # those of extras have more behind it
        if not match:
            continue
        name, lowest = match.groups()
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{name} is missing")
            continue
        if _list_numbers(versions[name]) < _list_numbers(lowest):
            wrong.append(f"{name} {versions[name]} is older than {lowest}")
    text = ", ".join([*wrong, *(f"{name} {version}" for name, version in versions.items())])
    return Check("problem" if wrong else "ok", text, AGAIN if wrong else "", {"versions": versions})


def _list_numbers(version: str) -> list[int]:
    """Return the numbers of a version up to the third: [2, 10, 0] of 2.10.0+cpu."""
    return [int(number) for number in re.findall(r"\d+", version.partition("+")[0])[:3]]


def check_device(_: Context) -> Check:
    """Say what `--device auto` takes, and in which precision."""
    import torch

    from dlcv_cli.studies.images.predictor import describe_arithmetic, prepare
    from dlcv_cli.vision.inference import resolve_precision

    device, threads = prepare(Machine())
    precision = resolve_precision("auto", device)
    values = describe_arithmetic(device, threads, precision)
    how = "native" if precision == "bfloat16" else "it has no native bfloat16"
    text = f"{device} ({values['processor']}), {precision} ({how})"
    if GPU.exists() and not torch.cuda.is_available():
        return Check("warning", f"{text}; there is an NVIDIA GPU, and torch cannot use it",
                     "install the CUDA build of torch, and a driver as new as it needs", values)  # fmt: skip
    return Check("ok", text, values=values)


def check_threads(_: Context) -> Check:
    """Compare the threads that dlcv starts with the processors, and with the processor time of the container."""
    threads, processors = count_processors(), os.cpu_count()
    values = {"threads": threads, "processors": processors}
    text = f"{threads} of {processors} processors may be used"
    quota, period = CPU_QUOTA.read_text().split() if CPU_QUOTA.is_file() else ("max", "")
    if quota != "max" and (share := int(quota) / int(period)) < threads:
        remedy = f"give --threads {max(1, int(share))}"
        return Check("warning", f"{text}, but only the time of {share:g}", remedy, values)
    return Check("ok", text, values=values)


def check_fusion(_: Context) -> Check:
    """Say whether a convolution and the ReLU behind it are one operation."""
    from dlcv_cli.vision.inference import DTYPES, fusion_works

    values = {name: fusion_works(dtype) for name, dtype in DTYPES.items()}
    if all(values.values()):
        return Check("ok", "convolution and ReLU are one operation on the CPU", values=values)
    lacks = " and ".join(name for name, works in values.items() if not works)
    return Check("warning", f"this torch computes convolution and ReLU apart on the CPU in {lacks}, which is slower",
                 "results are right; for speed, install a torch built with oneDNN", values)  # fmt: skip


def check_cache(context: Context) -> Check:
    """Say where the cache folder is, how large it is, and whether it can be written."""
    cache = _require_cache(context)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache) as file:
            file.write(bytes(2**16))  # a full disk takes an empty file
            file.flush()
    except OSError as error:
        return Check("warning", f"{cache} cannot be written ({error.strerror}): all is computed again in each run",
                     "give another folder with --cache DIR or DLCV_CACHE", {"cache": str(cache)})  # fmt: skip
    size = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
    return Check("ok", f"{cache}, {format_bytes(size)}", values={"cache": str(cache), "bytes": size})


def _require_cache(context: Context) -> Path:
    """Return the cache folder, which `doctor` always has."""
    if context.cache is None:
        raise ValueError("the context has no cache folder")
    return context.cache


def check_disk(context: Context) -> Check:
    """Say how much is free on the disks of the cache and of the current folder."""
    disks = {find_mount_point(path): path for path in (_require_cache(context), Path.cwd())}
    free = {str(disk): shutil.disk_usage(disk).free for disk in disks}
    text = ", ".join(f"{format_bytes(count)} free on {disk}" for disk, count in free.items())
    if min(free.values()) < NEEDED:
        remedy = f"free some space ({format_bytes(NEEDED)} for VGG16), or use `dlcv cache prune`, another -o or --cache"
        return Check("warning", text, remedy, {"free": free})
    return Check("ok", text, values={"free": free})


def check_network(_: Context) -> Check:
    """Put fixed pixels through vgg16_mini by one thread, in float32, as the frozen layers are computed.

    Source of the right logits: the same network by plain torch in float64.
    """
    import torch

    from dlcv_cli.stages.weights import locate_weights, read_weights
    from dlcv_cli.studies.images.predictor import prepare
    from dlcv_cli.vision.architectures import ARCHITECTURES
    from dlcv_cli.vision.inference import FeatureExtractor
    from dlcv_cli.vision.models import build_loaded_network
    from dlcv_cli.vision.steps import list_steps

    device, _threads = prepare(Machine("cpu", 1))
    architecture = ARCHITECTURES["vgg16_mini"]
    weights = read_weights(locate_weights(None, architecture))
    classes = len(weights.tensors[f"{architecture.head}.bias"])
    network = build_loaded_network(architecture, classes, weights.tensors).eval()
    side = weights.preprocessing.crop
    noise = np.frombuffer(hashlib.shake_128(b"dlcv").digest(IMAGES * side * side * 3), np.uint8)
    pixels = torch.from_numpy(noise.reshape(IMAGES, side, side, 3).copy())
    steps = [step for _, step in list_steps(network, architecture)]
    logits = FeatureExtractor(steps, weights.preprocessing, device, "float32")(pixels)
    mean, std = (torch.tensor(triple).double() for triple in (weights.preprocessing.mean, weights.preprocessing.std))
    with torch.no_grad():
        right = network.double()(((pixels.double() / 255 - mean) / std).permute(0, 3, 1, 2))
    return judge_bits("vgg16_mini", logits.numpy(), right.numpy())


def check_kernels(context: Context) -> Check:
    """Load the compiled kernels, or compile them."""
    from dlcv_cli.studies.sequences.compiled_kernels import prepare_kernels

    folder = prepare_kernels(context.cache, context.reporter)
    train_cell("compiled")
    return Check("ok", f"compiled for this processor, in {folder}", values={"folder": str(folder)})


def check_cell(_: Context) -> Check:
    """Train a GRU by the kernels. Source of the right predictions: torch.nn and autograd."""
    return judge_bits("a GRU", train_cell("compiled"), train_cell("torch"))


@functools.cache
def train_cell(engine: str) -> NDArray[np.float32]:
    """Return what a GRU predicts for fixed sequences after a pass over them."""
    from dlcv_cli.sequences.cells import CELLS, draw_parameters
    from dlcv_cli.sequences.engines import build_engine
    from dlcv_cli.sequences.tasks import generate

    data, cell = generate(GenConfig(), SEQUENCES, 0), CELLS["gru"]
    weights = draw_parameters(cell, data.inputs.shape[1], HIDDEN, 0.0, 0)
    own = build_engine(cell, weights, SeqTrainConfig(engine=engine, hidden_size=HIDDEN), data)
    own.advance(np.arange(SEQUENCES))  # type: ignore[union-attr]  # no baseline
    return own.predict(data)


def judge_bits(what: str, computed: NDArray[np.float32], right: NDArray[np.floating]) -> Check:
    """Return the sha256 of numbers, which equals another machine's if all bits do, and whether they are right."""
    error = float(np.abs(computed - right).max() / np.abs(right).max())
    sha256 = hashlib.sha256(np.ascontiguousarray(computed).data).hexdigest()
    values = {"sha256": sha256, "error": error if np.isfinite(error) else None}
    if not error <= TOLERANCE:  # nor if it is no number
        return Check("problem", f"{what} gives wrong numbers, off by {error:.1g} of the largest", AGAIN, values)
    return Check("ok", f"{what} gives bits {sha256[:12]}, right to {error:.0e}", values=values)


# name -> check. Where two machines print the same bits, they compute the same ones.
CHECKS: dict[str, Callable[[Context], Check]] = {
    "versions": check_versions,
    "device": check_device,
    "threads": check_threads,
    "fusion": check_fusion,
    "cache": check_cache,
    "disk": check_disk,
    "network": check_network,
    "kernels": check_kernels,
    "cell": check_cell,
}
