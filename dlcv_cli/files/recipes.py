"""From what an output is made: stage, settings and inputs by content. Decides, like make, what has to be done."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dlcv_cli.context import count_processors
from dlcv_cli.errors import DlcvError, ExistsError
from dlcv_cli.files.disk import JSON, as_object, relative_path


@dataclass(frozen=True)
class Input:
    """One input: its sha256, and where it is: a path, or the name by which dlcv knows it.

    `root` is the images' folder, when one was given in place of the split file's own.
    """

    sha256: str
    path: Path | None = None
    name: str | None = None
    root: Path | None = None


@dataclass(frozen=True)
class Recipe:
    """What an output's bytes depend on."""

    stage: str
    config: JSON
    inputs: Mapping[str, Input] = field(default_factory=dict)

    def to_json(self, folder: Path) -> JSON:
        """As the output records it; paths are relative to the output's folder."""
        inputs = {}
        for name, given in self.inputs.items():
            places = {"path": given.path, "root": given.root}
            record = {key: relative_path(place, folder) for key, place in places.items() if place}
            inputs[name] = ({"name": given.name} if given.name else {}) | record | {"sha256": given.sha256}
        return {"stage": self.stage, "config": self.config, "inputs": inputs}

    def differences(self, recorded: JSON) -> list[str]:
        """What differs from an existing output's record, in words; empty when it was made the same way."""
        if recorded.get("stage") is None:
            return ["it does not say how it was made"]
        if recorded["stage"] != self.stage:
            return [f"it is the output of {recorded['stage']}"]
        old, new = as_object(recorded.get("config")), self.config
        found = [f"{k} was {old.get(k)}, now {new.get(k)}" for k in {**old, **new} if old.get(k) != new.get(k)]
        inputs = as_object(recorded.get("inputs"))
        for name in {**inputs, **self.inputs}:
            given = self.inputs.get(name)
            if as_object(inputs.get(name)).get("sha256") != (given and given.sha256):
                found.append(f"another {name}")
        return found


def is_up_to_date(output: Path, recipe: Recipe, recorded: Callable[[Path], JSON], force: bool) -> bool:
    """Whether `output` exists and was made by this recipe. ExistsError when it was made differently, unless forced.

    Raises:
        DlcvError: the output is a folder, or one of the inputs, which would be lost.
    """
    _check_place(output, recipe)
    if force or not output.exists():
        return False
    remedy = "--force evaluates anew" if recipe.stage == "eval" else "give another -o, or --force to replace it"
    try:
        differences = recipe.differences(recorded(output))
    except DlcvError as error:
        raise ExistsError(output, [str(error).removeprefix(f"{output}: ")], remedy) from None
    if differences:
        raise ExistsError(output, differences, remedy)
    return True


def _check_place(output: Path, recipe: Recipe) -> None:
    if output.is_dir():
        raise DlcvError(f"{output}: is a folder where a file is to be written; move it away")
    for name, given in recipe.inputs.items():
        if given.path and output.exists() and given.path.exists() and output.samefile(given.path):
            remedy = "rename it" if recipe.stage == "eval" else "give another -o"
            raise DlcvError(f"{output} is this stage's {name}, and would be lost: {remedy}")


def refuse_overwrite(beside: Path, recipe: Recipe, recorded: Callable[[Path], JSON], force: bool) -> None:
    """Refuses to write a file beside the output over an input, a folder, or (unless forced) what is none of ours."""
    _check_place(beside, recipe)
    if beside.exists() and not force:
        try:
            recorded(beside)
        except DlcvError as error:
            problem = str(error).removeprefix(f"{beside}: ")
            raise ExistsError(beside, [problem], "move it away, or --force to replace it") from None


def installed_versions(*packages: str) -> dict[str, str]:
    """Installed versions, without importing anything."""
    return {name: importlib.metadata.version(name) for name in ("dlcv", *packages)}


class RunInfo:
    """All that varies between two identical runs: times, machine, versions. Starts the clock when made."""

    def __init__(self) -> None:
        self.started = datetime.now(UTC)
        self.clock = time.perf_counter()

    def to_json(self, *packages: str, **more: Any) -> JSON:
        """The `run` record of a metrics or evaluation file; seconds since it was made."""
        return {
            "started": self.started.isoformat(timespec="seconds"),
            "seconds": round(time.perf_counter() - self.clock, 3),
            "machine": f"{platform.system()} {platform.machine()}, {count_processors()} of {os.cpu_count()} processors",
            "python": platform.python_version(),
            "versions": installed_versions(*packages),
            **more,
        }
