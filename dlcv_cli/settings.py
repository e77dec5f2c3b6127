"""How a setting is declared and checked: a dataclass field with its default, help text and range."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Literal, Self, get_args, get_origin, get_type_hints

from dlcv_cli.errors import SettingError

# name -> defaults in place of the fields'; None: the stage tries several values and keeps the best
Recipes = Mapping[str, Mapping[str, Any]]


def setting(default: Any, help: str, *, later: bool = False, **bounds: float) -> Any:
    """Declare a field with its help text and its range: `low` <= value <= `high`, value > `above`.

    Files record a setting that came `later` than their format only where it is not its default: without it, a stage
    writes the bytes that it wrote before.
    """
    return field(
        default=default, metadata={"help": help, "later": later, "low": None, "high": None, "above": None, **bounds}
    )


def describe_range(metadata: Mapping[str, Any]) -> str:
    """Return a field's range in words, such as "1 to 64"; empty if it has none."""
    low, high, above = (
        None if metadata[bound] is None else _format_bound(metadata[bound]) for bound in ("low", "high", "above")
    )
    if low and high:
        return f"{low} to {high}"
    lower = f"at least {low}" if low else f"above {above}" if above else ""
    upper = f"at most {high}" if high else ""
    return ", ".join(filter(None, (lower, upper)))


def _format_bound(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def list_choices(kind: Any) -> tuple[str, ...]:
    """Return the values of a Literal type, which may be None as well; empty for other types."""
    return next((get_args(k) for k in (kind, *get_args(kind)) if get_origin(k) is Literal), ())


def option_name(name: str) -> str:
    """Return a field's name as it is typed: `--batch-size` for batch_size."""
    return f"--{name.replace('_', '-')}"


SECOND_NAMES = {"vgg": "image"}  # of groups of commands; files record the older one


def name_stage(stage: Any) -> str:
    """Return a stage as it is typed: `image head` for vgg.head."""
    first, *rest = str(stage).split(".")
    return " ".join([SECOND_NAMES.get(first, first), *rest])


@dataclass(frozen=True)
class Config:
    """Base of the stages' settings: checks each value against its field's range."""

    PANEL: ClassVar[str] = "Settings"  # heading of the options in a command's help
    WHAT: ClassVar[str] = "What to train"  # heading of those that choose a recipe, or an entry of a table
    RECIPES: ClassVar[Recipes] = {}

    @classmethod
    def by_recipe(cls, **given: Any) -> Self:
        """Return the settings with the defaults of the `recipe` that is given, if any, in place of the fields'."""
        return cls(**{**cls.RECIPES.get(given.get("recipe", ""), {}), **given})

    @property
    def to_try(self) -> list[str]:
        """The names of the settings of which the stage is to try several values."""
        recipe = self.RECIPES.get(getattr(self, "recipe", ""), {})
        return [name for name, value in recipe.items() if value is None and getattr(self, name) is None]

    def __post_init__(self) -> None:
        types, to_try = get_type_hints(type(self)), self.to_try
        for f in fields(self):
            value, kind, option = getattr(self, f.name), types[f.name], option_name(f.name)
            if f.name in to_try:
                continue
            if (choices := list_choices(kind)) and value not in (*choices, f.default):
                raise SettingError(f"{option} is {value!r}: choose from {', '.join(choices)}")
            if isinstance(value, float) and not math.isfinite(value):
                raise SettingError(f"{option} is {value}: it must be a finite number")
            for name, holds, sign in (
                ("low", operator.ge, ">="),
                ("above", operator.gt, ">"),
                ("high", operator.le, "<="),
            ):
                bound = f.metadata.get(name)
                if bound is not None and value is not None and not holds(value, bound):
                    raise SettingError(f"{option} is {value}: it must be {sign} {_format_bound(bound)}")

    def to_json(self) -> dict[str, Any]:
        """Return the settings as the files record them."""
        unset = {f.name for f in fields(self) if f.metadata["later"] and getattr(self, f.name) == f.default}
        return {name: value for name, value in asdict(self).items() if name not in unset}
