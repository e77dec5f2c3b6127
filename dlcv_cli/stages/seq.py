"""`seq gen` and `seq train`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from dlcv_cli.artifacts import sequences, tensors
from dlcv_cli.artifacts.files import check_output, sha256, writable
from dlcv_cli.artifacts.lineage import Input, Recipe, Run, up_to_date, versions
from dlcv_cli.config import GenConfig, SeqTrainConfig
from dlcv_cli.errors import FileError, SettingError, lookup
from dlcv_cli.sequences.cells import CELLS, initial_parameters
from dlcv_cli.sequences.tasks import TASKS, generate
from dlcv_cli.stages.reporting import Outcome, Reporter
from dlcv_cli.stages.trained import finish, finished
from dlcv_cli.vision.splits import PARTS, held_out

PACKAGES = ("torch", "numpy", "safetensors")


def gen(output: Path, config: GenConfig, *, force: bool = False) -> Outcome:
    """Writes a sequence file.

    Raises:
        DlcvError: an unknown task, or an output made differently.
    """
    check_output(output, ".safetensors")
    lookup(TASKS, config.task, "task")
    test = held_out(config.count, config.test_fraction)
    val = held_out(config.count - test, config.val_fraction)
    counts = {"train": config.count - test - val, "val": val, "test": test}
    if min(counts.values()) < 1:
        raise SettingError(f"count is {config.count}: that leaves a part empty ({counts}); give more")
    recipe = Recipe("seq.gen", config.to_json())
    if up_to_date(output, recipe, lambda path: tensors.read_record(path, tensors.SEQUENCES), force):
        return Outcome(output, False, {"counts": counts})
    parts = {part: generate(config, counts[part], stream) for stream, part in enumerate(PARTS)}
    sequences.write(output, parts, {**recipe.to_json(output.parent), "versions": versions("numpy")})
    return Outcome(output, True, {"counts": counts})


def train(
    data: Path, output: Path, config: SeqTrainConfig, *, force: bool = False, report: Reporter | None = None
) -> Outcome:
    """Trains one cell on a sequence file; writes its checkpoint and metrics.

    Raises:
        DlcvError: a bad input, or an output made differently.
    """
    import torch

    from dlcv_cli.sequences.networks import network, parameters
    from dlcv_cli.sequences.training import fit

    run = Run()
    report = report or Reporter()
    check_output(output, ".safetensors")
    cell = lookup(CELLS, config.cell, "cell")
    file = sequences.read(data)
    recipe = Recipe("seq.train", config.to_json(), {"data": Input(sha256(data), data)})
    if done := finished(output, recipe, force, report):
        return done
    writable(output)
    torch.set_num_threads(1)  # at batch size 1 a second thread only costs
    width = file.parts["train"].inputs.shape[1]
    start = initial_parameters(cell, width, config.hidden_size, task_constant(file), config.seed)
    module = network(cell, start)
    count = sum(p.numel() for p in module.parameters())
    report.note(f"trains {count:,} parameters ({config.cell}) on {len(file.parts['train'].lengths):,} sequences")

    records = []
    total = config.epochs * len(file.parts["train"].lengths)
    for record in fit(module, file.parts["train"], file.parts["val"], config):
        records.append(asdict(record))
        report.record(records[-1])
        report.progress("training", record.iteration, total)
    subject, sizes = {"task": file.task}, {"total": count, "trainable": count}
    return finish(output, recipe, run, parameters(module), subject, {}, sizes, records, PACKAGES, threads=1)


def task_constant(file: sequences.SequenceFile) -> float:
    """The baseline's answer for the file's task. FileError when this version does not know the task."""
    if file.task not in TASKS:
        raise FileError(file.path, f"is of the task {file.task!r}, which this version does not know")
    return TASKS[file.task].constant
