"""Options that commands share, and options made from the dataclasses of config.py."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer

from dlcv_cli.cli.console import Terminal
from dlcv_cli.cli.settings_sources import apply_settings, name_origin
from dlcv_cli.config import Machine, Saving
from dlcv_cli.context import Context, Reporter
from dlcv_cli.errors import SettingError
from dlcv_cli.settings import Config, describe_range, list_choices, option_name

# Headings in a command's help, in this order; those of the config classes come after the first.
WHAT, WHERE, FILES = Config.WHAT, "Where it computes", "Files"

# Whether an input can be read is checked by the stage, which says so in one line with exit code 1.
UNCHECKED: dict[str, Any] = {"readable": False, "show_default": False}

IN_FILES: dict[str, Any] = {"show_default": False, "rich_help_panel": FILES}

SplitFile = Annotated[Path, typer.Argument(metavar="SPLIT", help="Split file of dlcv data split.", **UNCHECKED)]
OutputFile = Annotated[
    Path, typer.Option("--output", "-o", metavar="FILE", help="File to write.", rich_help_panel=FILES)
]
OutputFolder = Annotated[
    Path, typer.Option("--output", "-o", metavar="DIR", help="Folder to write.", rich_help_panel=FILES)
]
Root = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="The images' folder, if not the one in SPLIT.", **(IN_FILES | UNCHECKED)),
]
Weights = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE",
        help="imagenet (vgg16_mini: drawn), or a .pth, .safetensors or dlcv checkpoint.",
        show_default="imagenet; vgg16_mini: drawn",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace an output that was made differently.", **IN_FILES)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only results, warnings and errors.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Also print the seconds since the start, and what it computes on.")
]
_CONFIG = "TOML file with a section of settings for each command, or the metrics of a training: to run it again."
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", callback=apply_settings, is_eager=True, help=_CONFIG, **IN_FILES),
]
_LOG = "Also write each record to records.csv in this folder, and for TensorBoard if that is installed."
LogFolder = Annotated[Path | None, typer.Option("--log-dir", metavar="DIR", help=_LOG, **IN_FILES)]


def _cache_folder() -> Path:
    from dlcv_cli.files.feature_cache import find_default_folder

    return find_default_folder()


_CACHE = "Folder of cached features and compiled code. Default: $DLCV_CACHE, or the user's cache folder."
CacheFolder = Annotated[
    Path, typer.Option("--cache", metavar="DIR", default_factory=_cache_folder, help=_CACHE, **IN_FILES)
]
NoCache = Annotated[
    bool, typer.Option("--no-cache", help="Compute the frozen layers again for every batch.", **IN_FILES)
]


# What a command's Context is made from, beside how it computes and saves.
FORCE: dict[str, Any] = {"force": Force}
PLACES = {"cache": CacheFolder, "root": Root, "no_cache": NoCache, **FORCE}
LOGS: dict[str, Any] = {"log_dir": LogFolder}
TALK = {"quiet": Quiet, "verbose": Verbose}  # of every command that reports progress
UNSET = {"cache": inspect.Parameter.empty, "root": None, "log_dir": None, "config_file": None}  # others: False
# under Files; others come after
ORDER = ("output", "page", "labels", "config_file", "cache", "download", "data", "root", "no_cache", "force")


def output_option(default: str) -> Any:
    """Return the option of a file whose name follows from other settings; `default` says how."""
    text = f"File to write. Default: {default}."
    return typer.Option("--output", "-o", metavar="FILE", help=text, **IN_FILES)


def example(command: str) -> str:
    """Return the last line of a command's help."""
    return f"Example: {command}"


def configured(
    *configs: type[Config], places: Mapping[str, Any] = FORCE, choices: Mapping[str, Iterable[str]] | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command one option for each field of the config classes; pass it the configs by position, then a Context.

    Args:
        configs: those that say where to compute and how often to save are not passed, but make the Context.
        places: more options that make the Context, each with its type.
        choices: for fields that name an entry of a table, the table's names.
    """
    count = 1 + sum(not issubclass(config, Machine | Saving) for config in configs)

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(command, eval_str=True).parameters.values())[count:]
        made = [_parameter(config, f, choices or {}) for config in configs for f in dataclasses.fields(config)]
        option = functools.partial(inspect.Parameter, kind=inspect.Parameter.KEYWORD_ONLY)
        of_context = {**places, **TALK, "config_file": ConfigFile}
        placed = [option(name, annotation=kind, default=UNSET.get(name, False)) for name, kind in of_context.items()]

        @functools.wraps(command)
        def run(ctx: typer.Context, **values: Any) -> None:
            typed = {name for name in values if getattr(ctx.get_parameter_source(name), "name", "") != "DEFAULT"}
            del values["config_file"]  # its values are set
            instances = []
            for config in configs:
                own = {f.name: values.pop(f.name) for f in dataclasses.fields(config)}
                try:
                    instances.append(config.by_recipe(**{name: value for name, value in own.items() if name in typed}))
                except SettingError as error:
                    raise SettingError(name_origin(ctx, str(error))) from None
            context = _make_context(instances, **{name: values.pop(name) for name in (*places, *TALK)})
            command(*(own for own in instances if not isinstance(own, Machine | Saving)), context, **values)

        keywords = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
        of_run = inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
        parameters = [of_run, *sorted([*keywords, *placed, *made], key=_rank)]
        del run.__wrapped__  # typer would read the signature behind it
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate


def _make_context(
    settings: Sequence[Config], cache: Path | None = None, no_cache: bool = False, **more: Any
) -> Context:
    """Return the Context of these settings and places, which reports to the terminal, and to a log if there is one."""
    machine = next((own for own in settings if isinstance(own, Machine)), Machine())
    saving = next((own for own in settings if isinstance(own, Saving)), Saving())
    cache = None if no_cache else cache
    reporter: Reporter = Terminal(more.pop("quiet"), more.pop("verbose"))
    if folder := more.pop("log_dir", None):
        from dlcv_cli.cli.logs import Log

        reporter = Log(folder, reporter)
    return Context(machine, cache, save_every=saving.save_every, reporter=reporter, **more)


def _rank(parameter: inspect.Parameter) -> tuple[int, int]:
    """Return the place of a parameter's panel in the help, and its place among the files."""
    panel = getattr(parameter.annotation.__metadata__[0], "rich_help_panel", None)
    if panel == FILES:
        return 4, ORDER.index(parameter.name) if parameter.name in ORDER else len(ORDER)
    return {None: 0, WHAT: 1, WHERE: 3}.get(panel, 2), 0


def _parameter(
    config: type[Config], field: dataclasses.Field[Any], choices: Mapping[str, Iterable[str]]
) -> inspect.Parameter:
    """Return a command's parameter for a field: its option, with type, help text and default."""
    kind = get_type_hints(config)[field.name]
    names = list(choices.get(field.name, ()))
    if names:
        kind = Literal[tuple(names)]
    text = field.metadata["help"]
    sentences = [f"{text[0].upper()}{text[1:]}."]
    if names := names or list(list_choices(kind)):
        sentences.append(f"One of {', '.join(names)}.")
    if limits := describe_range(field.metadata):
        sentences.append(f"Range: {limits}.")
    owner = next(c for c in reversed(config.__mro__) if field.name in vars(c).get("__annotations__", {}))
    option = typer.Option(
        *([option_name(field.name)] if field.default is False else []),  # off by default: has no opposite
        help=" ".join(sentences),
        metavar=_placeholder(kind),
        rich_help_panel=config.WHAT if field.name in ("recipe", *choices) else getattr(owner, "PANEL", None),
    )
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=Annotated[kind, option]
    )


def _placeholder(kind: Any) -> str | None:
    """Return the word that stands for the option's value in the help."""
    if list_choices(kind):
        return "NAME"
    if get_origin(kind) in (Union, types.UnionType):
        kind = get_args(kind)[0]
    return {int: "N", float: "X", str: "TEXT"}.get(kind)
