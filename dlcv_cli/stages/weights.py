"""Where `--weights` come from: a name the network table knows, or a local file of any of three kinds."""

from __future__ import annotations

import sys
import zipfile
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dlcv_cli.context import Reporter
from dlcv_cli.errors import DlcvError, FileError
from dlcv_cli.files.disk import as_object, hash_file, parse_json, require_file
from dlcv_cli.files.tensors import require_unchanged
from dlcv_cli.vision.architectures import Architecture
from dlcv_cli.vision.preprocessing import Preprocessing, normalisation


@dataclass(frozen=True)
class Weights:
    """Tensors by torchvision's names, where they came from, and the preprocessing they were trained with."""

    path: Path
    name: str | None  # for weights known by name
    sha256: str
    tensors: dict[str, Tensor]
    preprocessing: Preprocessing


def find(source: str | None, architecture: Architecture, report: Reporter) -> tuple[Path, str | None]:
    """(file, name or None) of `--weights`; None takes the network's first. Downloads torchvision's when not there."""
    known = architecture.weights
    name = source or next(iter(known), None)
    if name is None:
        raise DlcvError("this network has no weights known by name: give a file with --weights")
    if name in known:
        if known[name].endswith(".safetensors"):
            return shipped(known[name]), name
        return _torchvision_file(known[name], report), name
    path = Path(name)
    if not path.exists():
        raise FileError(path, f"no such file of weights; known by name for this network: {', '.join(known) or 'none'}")
    return path, None


def shipped(file: str) -> Path:
    """A checkpoint that comes with dlcv: in the wheel inside the package, in a checkout beside it."""
    package = Path(__file__).parents[1]
    for folder in (package / "checkpoints", package.parent / "checkpoints"):
        if (folder / file).is_file():
            return folder / file
    raise DlcvError(f"{file} is missing from this installation of dlcv: install it anew")


def _torchvision_file(entry: str, report: Reporter) -> Path:
    """torchvision's ImageNet weights in torch's own cache folder, downloaded when missing, checked by hash."""
    from torchvision.models import get_model_weights

    url = get_model_weights(entry).IMAGENET1K_V1.url
    return download(url, report)


def download(url: str, report: Reporter) -> Path:
    """The file of that URL in torch's cache folder. Its name ends in the first digits of its sha256, which are checked.

    Raises:
        DlcvError: it cannot be downloaded; with the manual way.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    prefix = path.stem.rpartition("-")[2]
    manual = f"download {url} with a browser and give its path to --weights"
    if not path.exists():
        report.note(f"downloading {url}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), hash_prefix=prefix, progress=sys.stderr.isatty())
        except (OSError, RuntimeError, HTTPException) as error:
            raise DlcvError(f"the weights could not be downloaded ({error}): {manual}") from None
    elif not hash_file(path).startswith(prefix):
        raise FileError(path, f"is damaged (its sha256 does not begin with {prefix}): delete it to download anew")
    return path


def read(path: Path, name: str | None, architecture: Architecture) -> Weights:
    """Reads a torchvision .pth (weights_only: no code runs), a .safetensors or a dlcv checkpoint.

    Raises:
        FileError: none of these, damaged, or holding numbers that are not finite.
    """
    require_file(path)
    with path.open("rb") as file:
        is_pth = file.read(4) in (b"PK\x03\x04", b"\x80\x02\x8a\x0a")  # zip, or torch's older format
    preprocessing = architecture.preprocessing
    if is_pth:
        tensors = _read_pth(path)
    else:
        tensors, metadata = _read_safetensors(path)
        preprocessing = _preprocessing(path, metadata, preprocessing)
    tensors = {key: t.float() if t.is_floating_point() else t for key, t in tensors.items()}
    broken = [key for key, t in tensors.items() if t.is_floating_point() and not t.isfinite().all()]
    if broken:
        raise FileError(path, f"damaged: {broken[0]} has numbers that are not finite")
    return Weights(path, name, hash_file(path), tensors, preprocessing)


def _read_pth(path: Path) -> dict[str, Tensor]:
    size = path.stat().st_size
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if sum(entry.file_size for entry in archive.infolist()) > size:  # torch's own are not compressed
                    raise FileError(path, "cannot be read as PyTorch weights: it unpacks to more than it is")
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except FileError:
        raise
    except UnpicklingError:
        raise FileError(
            path, "cannot be read as PyTorch weights: damaged, or holds more than tensors (give model.state_dict())"
        ) from None
    # torch.load raises many kinds of error on damaged or hostile files; each means the same to the user.
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise FileError(path, f"cannot be read as PyTorch weights: {reason[0]}") from None
    for key in ("state_dict", "model"):  # how training scripts wrap it
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not state or not all(_is_plain(value, size) for value in state.values()):
        raise FileError(path, "holds no dictionary of dense tensors")
    return {str(key).removeprefix("module."): t for key, t in state.items()}


def _is_plain(value: Any, size: int) -> bool:
    """Whether it is a tensor of numbers, no larger than the file: one number can stand for a billion."""
    dense = isinstance(value, Tensor) and value.layout is torch.strided and value.device.type == "cpu"
    return dense and not value.is_quantized and not value.is_complex() and value.numel() * value.element_size() <= size


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118  # no dict
    except SafetensorError as error:
        raise FileError(path, f"is neither PyTorch nor safetensors weights, or is damaged ({error})") from None


def _preprocessing(path: Path, metadata: dict[str, str], default: Preprocessing) -> Preprocessing:
    """What the weights say of themselves: a dlcv checkpoint's record, or a `preprocessing` key with mean and std."""
    try:
        if "dlcv" in metadata:
            record = as_object(parse_json(metadata["dlcv"]))
            require_unchanged(path, record)
            return Preprocessing.from_json(record.get("preprocessing"))
        if "preprocessing" in metadata:
            mean, std = normalisation(as_object(parse_json(metadata["preprocessing"])))
            return replace(default, mean=mean, std=std)
    except ValueError as error:
        raise FileError(path, f"is no image network's weights, or damaged: {error}") from None
    return default
