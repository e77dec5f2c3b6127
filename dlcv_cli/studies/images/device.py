"""Where an image stage computes, and what its last bits depend on."""

from __future__ import annotations

import ctypes
import os
import sys

import torch

from dlcv_cli.config import Machine
from dlcv_cli.context import count_processors
from dlcv_cli.errors import DlcvError
from dlcv_cli.files.disk import JSON
from dlcv_cli.files.recipes import read_versions

PACKAGES = ("torch", "torchvision", "numpy", "pillow", "safetensors")  # whose versions image files record
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def prepare(machine: Machine) -> tuple[torch.device, int]:
    """Return (device, threads) to compute with; sets torch's threads, and its deterministic algorithms.

    Raises:
        DlcvError: this machine has no such device.
    """
    # cuBLAS repeats itself only with a fixed workspace; read when CUDA starts
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    threads = machine.threads or count_processors()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
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
