"""`export`: a checkpoint of any study in, a file or folder for other programs out, compared with the checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dlcv_cli.config import ExportConfig
from dlcv_cli.context import Context, Outcome
from dlcv_cli.errors import FileError
from dlcv_cli.files import tensors
from dlcv_cli.files.disk import JSON, check_output, hash_file, write_whole
from dlcv_cli.files.exchange import SCHEMA, read_onnx_record, read_torchscript_record
from dlcv_cli.files.locks import claim_outputs
from dlcv_cli.files.recipes import Input, Recipe, is_up_to_date, read_versions, without_paths
from dlcv_cli.stages.card import write_card
from dlcv_cli.stages.data import fill_folder
from dlcv_cli.stages.evaluate import locate_data
from dlcv_cli.studies import study_of
from dlcv_cli.studies.base import Exported, ExportRequest

PACKAGES = ("torch", "torchvision", "safetensors")
# format -> its ending, none for a folder; and how to read what an earlier export of it records
FILES: dict[str, tuple[str, Callable[[Path], JSON]]] = {
    "onnx": (".onnx", read_onnx_record),
    "torchscript": (".pt", read_torchscript_record),
}


def export(
    checkpoint: Path, output: Path, config: ExportConfig, *, data: Path | None = None, context: Context = Context()
) -> Outcome:
    """Write a checkpoint in another format, unless it is up to date.

    Args:
        data: the split or sequence file, if it has moved. Without one, the check takes made-up examples.

    Raises:
        DlcvError: a damaged input, a missing package, an export that gives other numbers than the checkpoint, or an
            output that was made differently.
        SettingError: the study or the network has no such format.
    """
    metadata = tensors.read_metadata(checkpoint, tensors.CHECKPOINT)
    study = study_of(checkpoint, metadata)
    # by name: whoever gets the export has another disk
    recipe = Recipe("export", config, {"checkpoint": Input(hash_file(checkpoint), name=checkpoint.name)})
    made = {"schema": SCHEMA, **recipe.to_json(output.parent), "versions": read_versions(*PACKAGES)}
    results: list[Exported] = []

    def make() -> Exported:
        source, located = _locate(checkpoint, metadata, data, context)
        record = {**made, "checkpoint": without_paths(metadata)}
        card = write_card(checkpoint) if config.format == "timm" else ""
        results.append(study.export(ExportRequest(checkpoint, config, record, card, source, located)))
        return results[0]

    if config.format in FILES:
        ending, read_recorded = FILES[config.format]
        check_output(output, ending)
        if not is_up_to_date(output, recipe, read_recorded, context.force):
            with claim_outputs(output):
                content = make().files[""]
                with write_whole(output) as temporary:
                    temporary.write_bytes(content)
    else:
        fill_folder(output, recipe, lambda: make().files.items(), 3, context=context, packages=PACKAGES)
    if not results:
        return Outcome(output, False)
    return Outcome(output, True, {"checked_on": results[0].examples, "differences": results[0].differences})


def _locate(checkpoint: Path, metadata: JSON, data: Path | None, context: Context) -> tuple[Path | None, Context]:
    """Return the data that the checkpoint was trained with, or None if it was handed over alone."""
    try:
        return locate_data(checkpoint, metadata, data, context)
    except FileError:
        if data:
            raise
        return None, context
