"""Where settings come from that are not typed: variables, a TOML file, or the metrics of an earlier training.

Typed goes before a variable, a variable before the file of --config, and that before the default.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, get_args, get_origin

import typer

from dlcv_cli.cli.console import Terminal
from dlcv_cli.errors import DlcvError, FileError, SettingError
from dlcv_cli.settings import SECOND_NAMES, list_choices, name_stage

PREFIX = "DLCV_"
SHARED = {"cache": "DLCV_CACHE"}  # variables of an option in every command that has it
FOREIGN = "DLCV_TEST_"  # variables of the tests
ORIGINS = "dlcv.origins"  # in a context's meta: where each value is from

# type of an option -> whether a value of a file fits, and what to give
KINDS: dict[Any, tuple[Callable[[Any], bool], str]] = {
    bool: (lambda value: isinstance(value, bool), "true or false"),
    int: (lambda value: type(value) is int, "a whole number"),
    float: (lambda value: type(value) in (int, float), "a number"),
    list: (lambda value: isinstance(value, list) and all(isinstance(v, str) for v in value), "a list of texts"),
    str: (lambda value: isinstance(value, str), "a text"),
}
SWITCHES = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}

# role of an input in a metrics file -> the option or argument that names it; others are named like the role
INPUTS = {"checkpoint": "from"}


@dataclass(frozen=True)
class _Setting:
    """An option or argument of a command, by the key that a file has for it."""

    name: str  # of the parameter
    kind: Any


def apply_settings(ctx: typer.Context, path: Path | None) -> None:
    """Set a command's defaults from variables and from the file of --config, before its other options are read.

    Raises:
        DlcvError: a value of a wrong type, or a file with a key or section that is no option or command.
    """
    if ctx.resilient_parsing:  # completion
        return
    words, settings = _list_words(ctx), _list_settings(ctx.command)
    _warn_of_unknown(ctx.find_root().command, tuple(sorted(name for name in os.environ if name.startswith(PREFIX))))
    path = path or next((Path(text) for _, text in _list_variables(words, "config")), None)
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for section, table in _read_file(path, words, ctx.find_root().command, settings) if path else ():
        for key, value in table.items():
            own = _require_setting(f"{path}: {section}", key, settings, words)
            values[own.name] = _convert(f"{path}: {section}{key}", value, own.kind, DlcvError)
            origins[own.name] = str(path)
    for key, own in settings.items():
        for variable, text in _list_variables(words, key):
            values[own.name] = _convert(variable, _parse(text, own.kind), own.kind, SettingError)
            origins[own.name] = variable
    ctx.default_map = values
    ctx.meta[ORIGINS] = origins


def name_origin(ctx: typer.Context, message: str) -> str:
    """Return a message that begins with an option, with the variable or file that its value is from, if any."""
    name = message.partition(" ")[0].removeprefix("--").replace("-", "_")
    origin = ctx.meta.get(ORIGINS, {}).get(name)
    is_used = origin and getattr(ctx.get_parameter_source(name), "name", "") == "DEFAULT_MAP"
    return f"{message} (from {origin})" if is_used else message


# ---------------------------------------------------------------------------------------------- commands and their keys


def _list_words(ctx: typer.Context) -> tuple[str, ...]:
    """Return the words of a command, such as image, head."""
    words: list[str] = []
    at: Any = ctx
    while at.parent:
        words.insert(0, SECOND_NAMES.get(at.info_name, at.info_name) if at.parent.parent is None else at.info_name)
        at = at.parent
    return tuple(words)


def _list_names(words: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Return a command's words by each name of its group; the first name last, since it goes first."""
    others = [second for second, first in SECOND_NAMES.items() if first == words[0]]
    return [(name, *words[1:]) for name in (*others, words[0])]


def _list_keys(command: Any) -> dict[str, str]:
    """Return the parameters of a command's options and arguments, by key: `batch_size`, and `from` for --from."""
    keys = {max(p.opts, key=len).lstrip("-").replace("-", "_"): str(p.name) for p in command.params}
    return {key: name for key, name in keys.items() if key not in ("config", "help")}


def _list_settings(command: Any) -> dict[str, _Setting]:
    """Return a command's options and arguments with their types, by key."""
    parameters = inspect.signature(command.callback, eval_str=True).parameters
    kinds = {name: parameter.annotation for name, parameter in parameters.items()}
    kinds = {name: get_args(kind)[0] if get_origin(kind) is Annotated else kind for name, kind in kinds.items()}
    return {key: _Setting(name, kinds[name]) for key, name in _list_keys(command).items()}


def _list_commands(group: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _list_commands(command, (*words, name))
        else:
            yield (*words, name), command


def _require_setting(where: str, key: str, settings: Mapping[str, _Setting], words: tuple[str, ...]) -> _Setting:
    """Return the setting of a key. DlcvError, with a key that is like it, if the command has none."""
    name = key.replace("-", "_")
    if name not in settings:
        command = f"dlcv {' '.join(words)}"
        close = difflib.get_close_matches(name, settings, 1)
        remedy = f"did you mean {close[0]}?" if close else f"{command} --help lists what it has"
        raise DlcvError(f"{where}{key} is no option of {command}: {remedy}")
    return settings[name]


def _convert(where: str, value: Any, kind: Any, error: type[DlcvError]) -> Any:
    """Return a value for the parser: a text as it would be typed, except for booleans and lists.

    Raises:
        DlcvError: of this type; the value is of another type than the option.
    """
    choices = [choice for choice in list_choices(kind) if choice]
    fits, expected = KINDS.get(_get_base(kind), KINDS[str])
    if choices:
        fits, expected = choices.__contains__, f"one of {', '.join(choices)}"
    if not fits(value):
        raise error(f"{where} is {value!r}: expected {expected}")
    return value if isinstance(value, bool | list) else str(value)


def _parse(text: str, kind: Any) -> Any:
    """Return the value that a variable's text stands for; the text itself if it is of another type."""
    base = _get_base(kind)
    if base is bool:
        return SWITCHES.get(text.lower(), text)
    try:
        return base(text) if base in (int, float) else text
    except ValueError:
        return text


def _get_base(kind: Any) -> Any:
    """Return the type without None and without that of a list's members."""
    if NoneType in get_args(kind):
        kind = next(own for own in get_args(kind) if own is not NoneType)
    return get_origin(kind) or kind


# ------------------------------------------------------------------------------------------------------------ variables


def _name_variable(words: Iterable[str], key: str) -> str:
    return PREFIX + "_".join([*words, key]).upper()


def _list_variables(words: tuple[str, ...], key: str) -> Iterator[tuple[str, str]]:
    """Yield the variables of an option that are set, with their text; the last one counts."""
    for name in (SHARED.get(key, ""), *(_name_variable(own, key) for own in _list_names(words))):
        if text := os.environ.get(name):
            yield name, text


@functools.cache  # once for the commands of a demo
def _warn_of_unknown(root: Any, names: tuple[str, ...]) -> None:
    """Warn of variables that are no option's."""
    unknown = {name for name in names if not name.startswith(FOREIGN)} - set(SHARED.values())
    if not unknown:
        return
    commands = _list_commands(root)
    known = {_name_variable(words, key) for words, own in commands for key in (*_list_keys(own), "config")}
    for name in sorted(unknown - known):
        close = difflib.get_close_matches(name, known, 1, cutoff=0.8)
        Terminal().warn(f"the variable {name} is no option's" + (f": did you mean {close[0]}?" if close else ""))


# ---------------------------------------------------------------------------------------------------------------- files

Table = tuple[str, Mapping[str, Any]]  # how its keys are introduced in messages, and their values


def _read_file(path: Path, words: tuple[str, ...], root: Any, settings: Mapping[str, _Setting]) -> Iterator[Table]:
    """Yield what a file sets for a command, table by table; a later one goes first."""
    if path.suffix == ".json":
        yield "", _read_metrics(path, words, settings)
        return
    import tomllib

    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise FileError(path, f"not TOML: {error}") from None
    _require_commands(path, document, root)
    for own in _list_names(words):
        yield f"[{'.'.join(own)}] ", functools.reduce(lambda table, word: table.get(word, {}), own, document)


def _require_commands(path: Path, table: Mapping[str, Any], group: Any, above: tuple[str, ...] = ()) -> None:
    """Raise FileError unless every section of a table is a command."""
    for name, below in table.items():
        section = ".".join((*above, name))
        if not isinstance(below, dict):
            raise FileError(path, f"{section} is in no section: expected that of a command before it, as [image.head]")
        if name not in group.commands:
            expected = ", ".join(".".join((*above, own)) for own in group.commands)
            raise FileError(path, f"[{section}] is no command: expected one of {expected}")
        if hasattr(group.commands[name], "commands"):
            _require_commands(path, below, group.commands[name], (*above, name))


def _read_metrics(path: Path, words: tuple[str, ...], settings: Mapping[str, _Setting]) -> dict[str, Any]:
    """Return the settings and inputs of an earlier training, by key.

    A setting that is not set is left out, and a recipe then chooses it again. One that the file need not record, since
    it had its default, is set to that, because the recipe may have another.
    """
    from dlcv_cli.config import STAGES
    from dlcv_cli.results.codec import read_document
    from dlcv_cli.results.metrics import TrainingMetrics

    metrics = read_document(path, TrainingMetrics)
    command = " ".join(words)
    if name_stage(metrics.stage) != command:
        raise FileError(path, f"is of a training by dlcv {name_stage(metrics.stage)}: expected one by dlcv {command}")
    config = STAGES.get(metrics.stage)
    unrecorded = {f.name: f.default for f in fields(config) if f.metadata["later"]} if config else {}
    # the last bits depend on both
    machine: dict[str, Any] = {
        key: metrics.run[key] for key in ("device", "threads") if key in metrics.run and key in settings
    }
    values: dict[str, Any] = {**unrecorded, **metrics.config, **machine}
    for role, source in metrics.inputs.items():
        key = next((own for own in (role, INPUTS.get(role)) if own in settings), None)
        if key and source.path:
            values[key] = str(path.parent / source.path)
        if key and source.name:
            values[key] = source.name
        if source.root:
            values["root"] = str(path.parent / source.root)
    return {key: value for key, value in values.items() if value is not None}
