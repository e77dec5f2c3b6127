"""Files that other programs read: running ONNX, writing TorchScript, and what to install where a package is missing."""

from __future__ import annotations

import importlib.util
import io
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from dlcv_cli.errors import DlcvError, FileError
from dlcv_cli.files.disk import JSON, check_schema, parse_json, require_file

if TYPE_CHECKING:
    from torch import nn

SCHEMA = "dlcv.export/1"
RECORD = "dlcv"  # name of the text in an export that says what it was made from

Call = Callable[[NDArray[Any]], list[NDArray[Any]]]  # the one input -> all outputs


def require_packages(what: str, extra: str, *packages: str) -> None:
    """Raise DlcvError, with what to install, unless all packages are there."""
    missing = [name for name in packages if not importlib.util.find_spec(name)]
    if missing:
        raise DlcvError(
            f"{what} needs {' and '.join(missing)}: run pip install '.[{extra}]' in the clone, or with pipx: "
            f"pipx inject dlcv {' '.join(packages)}"
        )


def start_onnx(data: bytes) -> Call:
    """Return a function that computes the outputs of an ONNX file."""
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda values: list(session.run(None, {name: values}))


def start_torchscript(data: bytes) -> Call:
    """Return a function that computes the outputs of a TorchScript file."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch would rather have torch.export
        module = torch.jit.load(io.BytesIO(data))  # type: ignore[no-untyped-call]

    def compute(values: NDArray[Any]) -> list[NDArray[Any]]:
        with torch.no_grad():
            outputs = module(torch.from_numpy(values))
        return [output.detach().numpy() for output in (outputs if isinstance(outputs, tuple) else (outputs,))]

    return compute


def script_to_bytes(module: nn.Module, texts: Mapping[str, str]) -> bytes:
    """Return a scripted module as the bytes of its file, with these texts as extra files."""
    import torch

    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(module), buffer, _extra_files=dict(texts))
    stripped = io.BytesIO()
    with zipfile.ZipFile(buffer) as archive, zipfile.ZipFile(stripped, "w") as output:
        for name in archive.namelist():
            if not name.endswith(".debug_pkl"):  # where each line was compiled: files of this machine
                output.writestr(zipfile.ZipInfo(name), archive.read(name))
    return stripped.getvalue()


def read_onnx_record(path: Path) -> JSON:
    """Return what an ONNX file of ours says of its origin. Raise FileError if it is none."""
    require_packages("reading ONNX", "export", "onnx")
    import onnx

    require_file(path)
    try:
        properties = {own.key: own.value for own in onnx.load(path).metadata_props}
    except Exception as error:  # protobuf's own, which is no public class
        raise FileError(path, f"is no ONNX file ({type(error).__name__})") from None
    return _parse(path, properties.get(RECORD))


def read_torchscript_record(path: Path) -> JSON:
    """Return what a TorchScript file of ours says of its origin. Raise FileError if it is none."""
    require_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            name = next((own for own in archive.namelist() if own.endswith(f"/extra/{RECORD}")), None)
            text = archive.read(name).decode() if name else None
    except (zipfile.BadZipFile, UnicodeDecodeError, NotImplementedError) as error:
        raise FileError(path, f"is no TorchScript file ({error})") from None
    return _parse(path, text)


def _parse(path: Path, text: str | None) -> JSON:
    if text is None:
        raise FileError(path, "is no export of dlcv")
    try:
        return check_schema(path, parse_json(text), SCHEMA)
    except ValueError as error:
        raise FileError(path, f"damaged: its record is not JSON ({error})") from None
