"""Makes a command's options out of the dataclasses in config.py, so that each setting stands in one place."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import typer

from dlcv_cli.config import Config

# What an input holds, and whether it can be read, is for the stage to say: in one line, with exit code 1.
UNCHECKED: dict[str, Any] = {"readable": False}

SplitFile = Annotated[
    Path, typer.Argument(metavar="SPLIT", help="Split file of dlcv data split.", show_default=False, **UNCHECKED)
]
OutputFile = Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="File to write.", show_default=False)]
OutputFolder = Annotated[
    Path, typer.Option("--output", "-o", metavar="DIR", help="Folder to write.", show_default=False)
]
Root = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="The images' folder, when it is not where SPLIT says.", **UNCHECKED),
]
Force = Annotated[bool, typer.Option("--force", help="Replace an output that was made differently.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]


def _cache_folder() -> Path:
    from dlcv_cli.files.feature_cache import default_folder

    # typer 0.26 does not look at envvar where there is a default_factory
    return Path(os.environ.get("DLCV_CACHE") or default_folder())


CacheFolder = Annotated[
    Path,
    typer.Option(
        "--cache",
        metavar="DIR",
        envvar="DLCV_CACHE",
        default_factory=_cache_folder,
        help="Where frozen layers' outputs and compiled code are kept.",
        show_default="the user's cache folder",
    ),
]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Compute the frozen layers anew for each batch.")]


def configured(
    *configs: type[Config], choices: Mapping[str, Iterable[str]] | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command one option for each field of the config classes, and hands it the configs by position.

    Args:
        configs: classes whose instances are the command's first arguments, in this order.
        choices: for fields that name an entry of a table, the table's names.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(command, eval_str=True).parameters.values())[len(configs) :]
        made = [_parameter(config, f, choices or {}) for config in configs for f in dataclasses.fields(config)]

        @functools.wraps(command)
        def run(**values: Any) -> None:
            instances = [
                config(**{f.name: values.pop(f.name) for f in dataclasses.fields(config)}) for config in configs
            ]
            command(*instances, **values)

        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + made
        del run.__wrapped__  # typer would read the signature behind it
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate


def _parameter(
    config: type[Config], field: dataclasses.Field[Any], choices: Mapping[str, Iterable[str]]
) -> inspect.Parameter:
    kind = get_type_hints(config)[field.name]
    if field.name in choices:
        kind = Literal[tuple(choices[field.name])]
    text = field.metadata["help"]
    option = typer.Option(help=f"{text[0].upper()}{text[1:]}.")
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=Annotated[kind, option]
    )
