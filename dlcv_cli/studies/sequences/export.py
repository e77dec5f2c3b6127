"""Cells for other programs: ONNX and TorchScript. Letters: N sequences, F inputs a step."""

from __future__ import annotations

import json

import numpy as np

from dlcv_cli.errors import DlcvError, FileError, SettingError
from dlcv_cli.files import sequences, tensors
from dlcv_cli.files.exchange import RECORD, require_packages, script_to_bytes, start_onnx, start_torchscript
from dlcv_cli.sequences.cells import Cell, Parameters, check_parameters
from dlcv_cli.sequences.tasks import Sequences
from dlcv_cli.studies.base import Exported, ExportRequest
from dlcv_cli.studies.sequences.study import predict_sequences, read_cell

CHECKED = 200  # sequences that an export is compared on
LARGEST = 1e-3  # difference of predictions


def export(request: ExportRequest) -> Exported:
    """Return a checkpoint of a cell in another format. See Study.export."""
    form = request.config.format
    if form == "timm":
        raise SettingError("--format timm is of images; a cell takes onnx or torchscript")
    if request.config.input == "tensor":
        raise SettingError("--input is of images, and this checkpoint is of sequences")
    stored = tensors.read(request.checkpoint, tensors.CHECKPOINT)
    cell, weights = _read_weights(stored)
    inputs = weights["rnn.weight_ih_l0"].shape[1] if cell.module else 2  # the baseline takes any
    data = _build(form, cell, weights, inputs, {"task": "regress", RECORD: json.dumps(request.record)})
    shown, examples = _list_examples(request, inputs)
    expected, _, _ = predict_sequences(stored, examples, request.context)
    compute = (start_onnx if form == "onnx" else start_torchscript)(data)
    rows = np.split(examples.inputs, np.cumsum(examples.lengths)[:-1])
    difference = float(np.abs(np.concatenate([compute(x[None])[0] for x in rows]) - expected).max())
    if not difference <= LARGEST:
        raise DlcvError(
            f"{request.checkpoint}: the predictions of the export differ by {difference:.2g} from the checkpoint's, "
            f"more than {LARGEST:g}; nothing is written"
        )
    return Exported({"": data}, {"predictions": difference}, shown)


def _read_weights(stored: tensors.Tensors) -> tuple[Cell, Parameters]:
    """Return the cell of a checkpoint and its weights. FileError: it is damaged, or of another cell."""
    cell, own = read_cell(stored), stored.arrays
    try:
        return cell, check_parameters(cell, own, own.get("rnn.weight_ih_l0", np.empty((0, 0))).shape[-1])
    except ValueError as error:
        raise FileError(stored.path, f"damaged: {error}") from None


def _build(form: str, cell: Cell, weights: Parameters, inputs: int, texts: dict[str, str]) -> bytes:
    if form == "torchscript":
        from dlcv_cli.sequences.engines.reference import build_module

        return script_to_bytes(build_module(cell, weights, inputs), texts)
    require_packages("--format onnx", "export", "onnx", "onnxruntime")
    from dlcv_cli.sequences.onnx_graph import build_graph, has_operation

    if not has_operation(cell):
        raise SettingError("--format onnx: ONNX has no operation for this cell; take --format torchscript")
    return build_graph(cell, weights, inputs, texts)


def _list_examples(request: ExportRequest, inputs: int) -> tuple[str, Sequences]:
    """Return what the check is made with, in words, and the sequences: of validation, or random without them."""
    if request.data:
        part = sequences.read(request.data).parts["val"]
        count = min(CHECKED, len(part.lengths))
        steps = int(part.lengths[:count].sum())
        examples = Sequences(part.inputs[:steps], part.lengths[:count], part.targets[:count])
        return f"{count} validation sequences", examples
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 51, CHECKED)
    values = rng.random((int(lengths.sum()), inputs), np.float32)
    shown = f"{CHECKED} random sequences (the validation sequences are not at hand)"
    return shown, Sequences(values, lengths, np.zeros(CHECKED, np.float32))
