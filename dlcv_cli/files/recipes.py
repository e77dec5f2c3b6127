"""Recipes: the stage, settings and inputs of an output. They decide, like make, whether an output is up to date.

Settings are compared so that outputs of older versions stay up to date:

* A setting that the file does not record has its default: the file is older than the setting.
* A recorded setting that no longer exists is a difference unless it is null, which always means "not set".
* Lists that are typed as text are compared without the spaces around their commas.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dlcv_cli.context import count_processors
from dlcv_cli.errors import DlcvError, ExistsError
from dlcv_cli.files.disk import JSON, as_object, hash_json, make_relative
from dlcv_cli.settings import Config, name_stage


@dataclass(frozen=True)
class Input:
    """One input: its sha256, and its path, or the name by which dlcv knows it.

    `root` is the images' folder, if it is not the one that the split file names. `recipe` is a checkpoint's own,
    without its seed and fold.
    """

    sha256: str
    path: Path | None = None
    name: str | None = None
    root: Path | None = None
    recipe: str | None = None


@dataclass(frozen=True)
class Recipe:
    """All that the bytes of an output depend on. Settings in a Config know their defaults."""

    stage: str
    config: Config | JSON
    inputs: Mapping[str, Input] = field(default_factory=dict)

    def to_json(self, folder: Path) -> JSON:
        """Return the recipe as the output records it, with paths relative to the output's folder."""
        inputs = {}
        for role, source in self.inputs.items():
            paths = {"path": source.path, "root": source.root}
            entry = {key: make_relative(path, folder) for key, path in paths.items() if path}
            named = {"name": source.name} if source.name else {}
            recipe = {"recipe": source.recipe} if source.recipe else {}
            inputs[role] = named | entry | {"sha256": source.sha256} | recipe
        return {"stage": self.stage, "config": self._settings(), "inputs": inputs}

    def differences(self, recorded: JSON) -> list[str]:
        """Return the differences to the recipe that an existing output records, as clauses about it; empty if none."""
        if recorded.get("stage") is None:
            return ["it does not say how it was made"]
        if recorded["stage"] != self.stage:
            return [f"it is an output of dlcv {name_stage(recorded['stage'])}"]
        if not isinstance(recorded.get("config"), dict):
            return ["its settings are unreadable"]
        old, new = self._defaults() | recorded["config"], self._defaults() | self._settings()
        clauses = [
            f"{_name_option(key, new.get(key))} was {_describe(old.get(key))}, now {_describe(new.get(key))}"
            for key in old | new
            if _normalise(old.get(key)) != _normalise(new.get(key))
        ]
        inputs = as_object(recorded.get("inputs"))
        for role in {**inputs, **self.inputs}:
            source = self.inputs.get(role)
            if as_object(inputs.get(role)).get("sha256") != (source and source.sha256):
                article = "" if role.endswith("s") or role == "data" else "a "  # plural or uncountable
                clauses.append(f"it was {'trained on' if role == 'split' else 'made from'} {article}different {role}")
        return clauses

    def _settings(self) -> JSON:
        return self.config.to_json() if isinstance(self.config, Config) else self.config

    def _defaults(self) -> JSON:
        if not isinstance(self.config, Config):
            return {}
        return {f.name: f.default for f in fields(self.config) if f.default is not MISSING}


VARIED = ("seed", "seeds", "fold")  # settings in which the runs of one recipe differ


@dataclass(frozen=True)
class RunOf:
    """Which run of which recipe a checkpoint is."""

    recipe: str  # hex sha256 of stage, settings and inputs; the runs of one recipe share it
    seed: int
    fold: int | None = None  # of a split that has several


def identify_run(metadata: JSON) -> RunOf:
    """Return which run of which recipe a checkpoint is, by its metadata.

    A checkpoint among the inputs counts by its own recipe: heads of several seeds, each fine-tuned, are of one recipe.
    """
    training = as_object(metadata.get("training")) or metadata  # of a calibrated checkpoint
    config = as_object(training.get("config"))
    inputs = {role: as_object(source) for role, source in as_object(metadata.get("inputs")).items()}
    identity = [
        metadata.get("stage"),
        {key: value for key, value in config.items() if key not in VARIED},
        {role: source.get("recipe", source.get("sha256")) for role, source in inputs.items()},
    ]
    seed, fold = config.get("seed"), str(config.get("fold"))
    return RunOf(hash_json(identity), seed if type(seed) is int else 0, int(fold) if fold.isdecimal() else None)


def _normalise(value: Any) -> Any:
    if isinstance(value, str):
        return [part.strip() for part in value.split(",")]
    return list(value) if isinstance(value, tuple) else value


def _name_option(key: str, value: Any) -> str:
    """Return the name of a setting as typed on the command line. Lists are arguments, not options."""
    return key if isinstance(value, list) else f"--{key.replace('_', '-')}"


def _describe(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return "not set" if value is None else str(value)


def is_up_to_date(output: Path, recipe: Recipe, read_recorded: Callable[[Path], JSON], force: bool) -> bool:
    """Return whether `output` exists and was made by this recipe.

    Args:
        read_recorded: returns the recipe that a file records.
        force: treat any existing output as out of date.

    Raises:
        ExistsError: it was made by another recipe.
        DlcvError: the output is a folder, or one of the inputs, which would be overwritten.
    """
    _require_own_path(output, recipe)
    if force or not output.exists():
        return False
    try:
        differences = recipe.differences(read_recorded(output))
    except DlcvError as error:
        raise ExistsError(output, [_describe_error(error, output)]) from None
    if differences:
        raise ExistsError(output, differences)
    return True


def _describe_error(error: DlcvError, path: Path) -> str:
    return f"it {str(error).removeprefix(f'{path}: ')}"


def _require_own_path(output: Path, recipe: Recipe) -> None:
    if output.is_dir():
        raise DlcvError(f"{output}: is a folder, where a file is to be written; move it away")
    for role, source in recipe.inputs.items():
        if source.path and output.exists() and source.path.exists() and output.samefile(source.path):
            raise DlcvError(f"{output} is the {role} of this command and would be overwritten; give another name")


def refuse_overwrite(path: Path, recipe: Recipe, read_recorded: Callable[[Path], JSON], force: bool) -> None:
    """Raise DlcvError if `path` is an input, a folder, or (unless `force` is set) a file of another program."""
    _require_own_path(path, recipe)
    if path.exists() and not force:
        try:
            read_recorded(path)
        except DlcvError as error:
            raise ExistsError(path, [_describe_error(error, path)]) from None


def without_paths(metadata: JSON) -> JSON:
    """Return a file's metadata with names in place of the paths of the machine that made it."""

    def name(recorded: JSON) -> JSON:
        path = recorded.get("path")
        named = {"name": path.rpartition("/")[2]} if isinstance(path, str) else {}
        return named | {key: value for key, value in recorded.items() if key not in ("path", "root")}

    inputs = as_object(metadata.get("inputs"))
    return {**metadata, "inputs": {role: name(as_object(recorded)) for role, recorded in inputs.items()}}


def read_versions(*packages: str) -> dict[str, str]:
    """Return the versions of dlcv and these packages, without importing them."""
    return {name: importlib.metadata.version(name) for name in ("dlcv", *packages)}


class RunInfo:
    """All that varies between identical runs: times, machine, versions. The clock starts when it is created."""

    def __init__(self) -> None:
        self.started = datetime.now(UTC)
        self.clock = time.perf_counter()

    def to_json(self, *packages: str, **more: Any) -> JSON:
        """Return the `run` object of a metrics or evaluation file, with the seconds since the start."""
        return {
            "started": self.started.isoformat(timespec="seconds"),
            "seconds": round(time.perf_counter() - self.clock, 3),
            "machine": f"{platform.system()} {platform.machine()}, {count_processors()} of {os.cpu_count()} processors",
            "python": platform.python_version(),
            "versions": read_versions(*packages),
            **more,
        }
