"""Arguments and options that `eval` and `report` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dlcv_cli.cli.options import FILES, UNCHECKED
from dlcv_cli.errors import SettingError, look_up

Checkpoints = Annotated[
    list[Path], typer.Argument(metavar="CHECKPOINT", help="Checkpoints.", show_default=False, **UNCHECKED)
]
DataFile = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="FILE",
        help="Split or sequence file, if it has moved since the training.",
        rich_help_panel=FILES,
        **UNCHECKED,
    ),
]
ImageFolder = Annotated[
    Path | None,
    typer.Option("--root", metavar="DIR", help="Folder of the images, if it has moved.", rich_help_panel=FILES),
]
Reference = Annotated[
    str | None,
    typer.Option(
        "--reference", metavar="NAME", help="Checkpoint that the others are compared with; default: the first."
    ),
]
Common = Annotated[
    bool, typer.Option("--common", help="Compare on the examples that all share, if their data differs.")
]
AllowContaminated = Annotated[
    bool, typer.Option("--allow-contaminated", help="Evaluate on examples that were trained on, with a warning.")
]


def name_checkpoints(paths: list[Path], reference: str | None) -> list[str]:
    """Return a name for each checkpoint: its file's without ending if these differ, else its path.

    Raises:
        SettingError: a checkpoint is listed twice, or no checkpoint has the reference's name.
    """
    if len({path.resolve() for path in paths}) < len(paths):
        raise SettingError("a checkpoint is listed twice")
    names = [path.name.removesuffix(".safetensors") for path in paths]
    if len(set(names)) < len(names):
        names = [str(path).removesuffix(".safetensors") for path in paths]
    if reference:
        look_up(dict.fromkeys(names), reference, "reference")
    return names
