"""The document of `eval --compare`, schema dlcv.comparison/2: one table and its tests. It says how it is to be read."""

from __future__ import annotations

from typing import ClassVar

import msgspec

from dlcv_cli.results.codec import Count, Document, Finite, Share, Struct
from dlcv_cli.results.evaluation import Data, Interval, Over, Spread
from dlcv_cli.statistics.collapse import Collapse

SCHEMA = "dlcv.comparison/2"


def format_number(value: float, percent: bool = False, signed: bool = False, small: bool = True) -> str:
    """Return a number for people: `0.1234`; if `small`, values near 0 as `6.91e-05`; fractions as percent: `12.34`."""
    sign = "+" if signed else ""
    if percent:
        return f"{100 * value:{sign}.2f}"
    return f"{value:{sign}.3g}" if small and abs(value) < 1e-2 else f"{value:{sign}.4f}"


class Column(Struct, frozen=True, omit_defaults=True):
    """A metric as it is shown. `percent`: fractions in files, percent on a screen."""

    key: str
    heading: str
    noun: str  # in a sentence
    higher_is_better: bool
    percent: bool = False
    small: bool = True  # values near 0 are shown with significant digits

    def format(self, value: float, signed: bool = False) -> str:
        """Return a value as people read it: `12.34` percent, `0.1234`, or `6.91e-05`."""
        return format_number(value, self.percent, signed, self.small)

    def format_interval(self, interval: Interval) -> str:
        """Return an interval, as short as a table needs it."""
        ends = (interval.low, interval.high)
        low, high = (f"{100 * x:.1f}" if self.percent else f"{x:.{2 if abs(x) < 1e-2 else 3}g}" for x in ends)
        return f"{low} to {high}"


class Row(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A network, or a baseline: then without collapse."""

    name: str
    baseline: bool
    metrics: dict[str, Finite]
    intervals: dict[str, Interval]
    intervals_over: Over
    seeds: tuple[Count, ...] = ()
    seed_spread: dict[str, Spread] = msgspec.field(default_factory=dict)
    collapse: Collapse | None = None
    contaminated: bool
    tries: Count = 0  # settings that were tried on the validation part, of which these were the best
    difference: Finite  # to the reference, in the comparison's metric
    best: list[str]  # keys of the metrics in which no network that has not collapsed is better

    @property
    def collapsed(self) -> bool:
        """Whether it is a network that ignores what it sees."""
        return self.collapse is not None and self.collapse.collapsed


class Pair(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One metric of a row against the reference's."""

    name: str
    reference: str
    metric: str
    difference: Finite
    interval: Interval
    p: Share
    test: str
    over: Over
    n: Count
    p_exact: Share | None = None  # McNemar: without the mid-p correction
    only_row: Count | None = None  # examples that only the row gets right
    only_reference: Count | None = None
    p_holm: Share  # corrected for the number of rows
    question: str
    sentence: str


class Comparison(Document, frozen=True, kw_only=True):
    """Evaluations of the same examples, the baselines last. The first column is `metric`."""

    SCHEMA: ClassVar[str] = SCHEMA

    data: Data  # of the first evaluation; n counts the examples that are compared
    common: dict[str, Count] | None  # how many examples each had, if only the shared ones are compared
    reference: str
    metric: str
    columns: list[Column]
    rows: list[Row]
    pairs: list[Pair]

    @property
    def searches(self) -> list[str]:
        """A sentence for each network whose settings were chosen."""
        return [
            f"The settings of {row.name} are the best of {row.tries:,} that were tried on the validation part."
            for row in self.rows
            if row.tries
        ]

    @property
    def tested(self) -> list[Column]:
        """The columns whose differences are tested."""
        keys = {pair.metric for pair in self.pairs}
        return [column for column in self.columns if column.key in keys]
