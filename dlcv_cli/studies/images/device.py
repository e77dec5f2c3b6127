"""Where an image stage computes, and on what there its last bits depend."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence

import torch

from dlcv_cli.config import Machine
from dlcv_cli.context import count_processors
from dlcv_cli.errors import DlcvError
from dlcv_cli.files.disk import JSON
from dlcv_cli.files.recipes import installed_versions

PACKAGES = ("torch", "torchvision", "numpy", "pillow", "safetensors")  # whose versions image files record
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def prepare(machine: Machine) -> tuple[torch.device, int]:
    """(device, threads) to compute with; sets torch's threads, and its deterministic algorithms.

    Raises:
        DlcvError: the device is not there.
    """
    # cuBLAS repeats itself only with a fixed workspace; read when CUDA starts
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    threads = machine.threads or count_processors()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # missing in the stubs
    _keep_memory()
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if machine.device == "auto":
        return torch.device(next(name for name in ("cuda", "mps", "cpu") if there[name])), threads
    if not there[machine.device]:
        raise DlcvError(f"--device {machine.device}: there is none on this machine; use --device auto")
    return torch.device(machine.device), threads


def _keep_memory() -> None:
    """Has glibc keep large blocks for the next step instead of giving each back to the kernel and taking it anew."""
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if mallopt:
            mallopt(_M_MMAP_THRESHOLD, 2**30)
            mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def bits(device: torch.device, threads: int, precision: str, packages: Sequence[str]) -> JSON:
    """On what, beside the recipe, a training's last bits depend."""
    processor = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    found = {"device": device.type, "processor": processor, "threads": threads, "precision": precision}
    return {**found, **installed_versions(*packages)}
