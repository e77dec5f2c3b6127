"""`dlcv seq`: sequence tasks and the cells that learn them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dlcv_cli.cli.console import print_outcome, print_trainings
from dlcv_cli.cli.options import FORCE, LOGS, UNCHECKED, CacheFolder, Json, configured, example, output_option
from dlcv_cli.config import GenConfig, Saving, SeqTrainConfig
from dlcv_cli.context import Context
from dlcv_cli.sequences.cells import CELLS
from dlcv_cli.sequences.engines import ENGINES
from dlcv_cli.sequences.tasks import TASKS

app = typer.Typer(no_args_is_help=True, help="Sequences: generate a task, train a recurrent cell on it.")


@app.command("gen", epilog=example("dlcv seq gen -o adding.safetensors"))
@configured(GenConfig, choices={"task": TASKS})
def gen(
    config: GenConfig,
    context: Context,
    output: Annotated[Path | None, output_option("runs/TASK.safetensors")] = None,
    as_json: Json = False,
) -> None:
    """Generate sequences, divided into train, val and test: FILE.safetensors."""
    from dlcv_cli.stages.train_sequences import generate_sequences

    outcome = generate_sequences(output or Path(f"runs/{config.task}.safetensors"), config, context=context)
    counts = ", ".join(f"{part} {count:,}" for part, count in outcome.summary["counts"].items())
    print_outcome(outcome, as_json, f"{config.task}: {counts}")


@app.command("train", epilog=example("dlcv seq train adding.safetensors --cell gru -o gru.safetensors"))
@configured(
    SeqTrainConfig,
    Saving,
    places={"cache": CacheFolder, **FORCE, **LOGS},
    choices={"cell": CELLS, "engine": ENGINES},
)
def train(
    config: SeqTrainConfig,
    context: Context,
    data: Annotated[Path, typer.Argument(metavar="FILE", help="Sequence file from dlcv seq gen.", **UNCHECKED)],
    output: Annotated[Path | None, output_option("runs/CELL.safetensors")] = None,
    as_json: Json = False,
) -> None:
    """Train one cell on a sequence file and keep the weights of the lowest validation loss."""
    from dlcv_cli.stages.train_sequences import train_sequence_runs

    output = output or Path(f"runs/{config.cell}.safetensors")
    print_trainings(train_sequence_runs(data, output, config, context=context), as_json)
