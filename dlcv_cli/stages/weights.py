"""The file that `--weights` means: torchvision's or ours by name, or a local file of any of three kinds."""

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
from dlcv_cli.vision.preprocessing import Preprocessing, read_normalisation


@dataclass(frozen=True)
class Weights:
    """Tensors by torchvision's names, and the preprocessing that they were trained with."""

    tensors: dict[str, Tensor]
    preprocessing: Preprocessing


@dataclass
class WeightsFile:
    """The file that `--weights` means, which may have to be downloaded."""

    path: Path
    preprocessing: Preprocessing  # where the file does not bring its own
    name: str | None = None  # of weights known by name
    url: str | None = None  # of torchvision's; its name ends in the first digits of the file's sha256
    sha256: str | None = None  # once it is fetched

    def is_published_as(self, sha256: str) -> bool:
        """Return whether torchvision's name of the file has this sha256."""
        return self.url is not None and sha256.startswith(_hash_prefix(self.url))

    def fetch(self, reporter: Reporter) -> str:
        """Download the file if it is torchvision's and missing; return its sha256, computed once.

        Raises:
            DlcvError: it is missing, damaged, or cannot be downloaded; with the way out.
        """
        if self.sha256 is None:
            self.sha256 = download(self.url, self.path, reporter) if self.url else hash_file(self.path)
        return self.sha256


def locate_weights(weights: str | None, architecture: Architecture) -> WeightsFile:
    """Return the file of `--weights`, without downloading it; None takes the network's first.

    Raises:
        DlcvError: the network knows no such name, and there is no such file.
    """
    known = architecture.weights
    name = weights or next(iter(known), None)
    if name is None:
        raise DlcvError("this network has no weights known by name: give a file with --weights")
    if name not in known:
        path = Path(name)
        if not path.exists():
            names = ", ".join(known) or "none"
            raise FileError(path, f"no such file of weights; known by name for this network: {names}")
        return WeightsFile(path, architecture.preprocessing)
    if known[name].endswith(".safetensors"):
        return WeightsFile(find_shipped(known[name]), architecture.preprocessing, name)
    from torchvision.models import get_model_weights

    entry = get_model_weights(architecture.builder)[known[name]]
    path, t = Path(torch.hub.get_dir()) / "checkpoints" / entry.url.rpartition("/")[2], entry.transforms()
    own = Preprocessing(t.resize_size[0], t.crop_size[0], tuple(t.mean), tuple(t.std), t.interpolation.value)
    return WeightsFile(path, own, name, entry.url)


def find_shipped(file: str) -> Path:
    """Return the path of a checkpoint that comes with dlcv: inside the package in a wheel, beside it in a clone."""
    package = Path(__file__).parents[1]
    for folder in (package / "checkpoints", package.parent / "checkpoints"):
        if (folder / file).is_file():
            return folder / file
    raise DlcvError(f"{file} is missing from this installation of dlcv: install it again")


def _hash_prefix(url: str) -> str:
    return Path(url).stem.rpartition("-")[2]


def download(url: str, path: Path, reporter: Reporter) -> str:
    """Return the sha256 of the file of a URL, downloaded if it is missing, checked against its name.

    Raises:
        DlcvError: it is damaged, or cannot be downloaded; with the manual way.
    """
    manual = f"download {url} with a browser and give its path to --weights"
    prefix, is_new = _hash_prefix(url), not path.exists()
    if is_new:
        reporter.note(f"downloading {url}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), hash_prefix=prefix, progress=sys.stderr.isatty())
        except (OSError, RuntimeError, HTTPException) as error:
            raise DlcvError(f"the weights could not be downloaded ({error}): {manual}") from None
    sha256 = hash_file(path)
    if not sha256.startswith(prefix):
        raise FileError(path, f"is damaged (its sha256 does not begin with {prefix}): delete it to download it again")
    return sha256


def read_weights(file: WeightsFile) -> Weights:
    """Read a torchvision .pth (weights_only: no code runs), a .safetensors or a dlcv checkpoint.

    Raises:
        FileError: the file is none of these, damaged, or holds numbers that are not finite.
    """
    path = file.path
    require_file(path)
    with path.open("rb") as stream:
        is_pth = stream.read(4) in (b"PK\x03\x04", b"\x80\x02\x8a\x0a")  # zip, or torch's older format
    preprocessing = file.preprocessing
    if is_pth:
        tensors = _read_pth(path)
    else:
        tensors, metadata = _read_safetensors(path)
        preprocessing = _read_preprocessing(path, metadata, preprocessing)
    tensors = {key: t.float() if t.is_floating_point() else t for key, t in tensors.items()}
    broken = [key for key, t in tensors.items() if t.is_floating_point() and not t.isfinite().all()]
    if broken:
        raise FileError(path, f"damaged: {broken[0]} has numbers that are not finite")
    return Weights(tensors, preprocessing)


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
            path, "cannot be read as PyTorch weights: damaged, or holds more than tensors (save model.state_dict())"
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
    """Return whether it is a tensor of numbers, no larger than the file: one number can stand for a billion."""
    dense = isinstance(value, Tensor) and value.layout is torch.strided and value.device.type == "cpu"
    return dense and not value.is_quantized and not value.is_complex() and value.numel() * value.element_size() <= size


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118  # no dict
    except SafetensorError as error:
        raise FileError(path, f"is neither PyTorch nor safetensors weights, or is damaged ({error})") from None


def _read_preprocessing(path: Path, metadata: dict[str, str], default: Preprocessing) -> Preprocessing:
    """Return what the weights say: a dlcv checkpoint's metadata, or a `preprocessing` key with mean and std."""
    try:
        if "dlcv" in metadata:
            document = as_object(parse_json(metadata["dlcv"]))
            require_unchanged(path, document)
            return Preprocessing.from_json(document.get("preprocessing"))
        if "preprocessing" in metadata:
            mean, std = read_normalisation(as_object(parse_json(metadata["preprocessing"])))
            return replace(default, mean=mean, std=std)
    except ValueError as error:
        raise FileError(path, f"is no image network's weights, or damaged: {error}") from None
    return default
