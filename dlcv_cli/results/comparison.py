"""The document of `eval --compare`, schema dlcv.comparison/3: one table and its tests. It says how it is to be read."""

from __future__ import annotations

from typing import ClassVar

import msgspec

from dlcv_cli.results.codec import Count, Document, Finite, NonNegative, Share, Struct
from dlcv_cli.results.evaluation import Data, Interval, Over

SCHEMA = "dlcv.comparison/3"


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

    def format_amount(self, value: float) -> str:
        """Return a difference as a sentence has it: `1.3 points` of percent, `0.00013` of other metrics."""
        return f"{100 * value:.1f} points" if self.percent else f"{value:.3g}"


class Run(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One run of a row."""

    name: str
    seed: Count
    fold: Count | None = None
    metrics: dict[str, Finite]
    collapsed: str | None = None  # why it counts as collapsed


class Spread(Struct, frozen=True, kw_only=True):
    """How a metric varies over runs. std: sample standard deviation; iqm: mean of the middle half."""

    mean: Finite
    std: NonNegative
    min: Finite
    max: Finite
    iqm: Finite


class Row(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The runs of a recipe, or a baseline: then without runs. Metrics are means over runs, of folds first."""

    name: str
    baseline: bool
    metrics: dict[str, Finite]
    intervals: dict[str, Interval]
    intervals_over: Over
    runs: list[Run] = msgspec.field(default_factory=list)
    spread: dict[str, Spread] = msgspec.field(default_factory=dict)  # of several runs
    success: Interval | None = None  # of several runs: the share of runs that do not collapse
    doubt: str = ""  # why intervals over its runs are not to be trusted
    contaminated: bool
    tries: Count = 0  # settings that were tried on the validation part, of which these were the best
    difference: Finite  # to the reference, in the comparison's metric
    best: list[str]  # keys of the metrics in which no row that has not collapsed is better

    @property
    def fallen(self) -> list[Run]:
        """The runs that have collapsed."""
        return [run for run in self.runs if run.collapsed]

    @property
    def collapsed(self) -> bool:
        """Whether at least half of the runs ignore what they see."""
        return 2 * len(self.fallen) >= len(self.runs) > 0

    @property
    def seeds(self) -> list[int]:
        """The different seeds of the runs."""
        return sorted({run.seed for run in self.runs})

    @property
    def folds(self) -> list[int]:
        """The different folds of the runs."""
        return sorted({run.fold for run in self.runs if run.fold is not None})

    def describe_runs(self) -> str:
        """Return how many runs there are, in words: `5 folds x 10 seeds`; empty for a single run."""
        if len(self.runs) < 2:
            return ""
        seeds, folds = len(self.seeds), len(self.folds)
        if folds < 2:
            return f"{len(self.runs)} seeds"
        whole = len(self.runs) == seeds * folds
        return (
            (f"{folds} folds x {seeds} seeds" if seeds > 1 else f"{folds} folds")
            if whole
            else (f"{len(self.runs)} runs of {folds} folds")
        )


class Improvement(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Several runs on both sides, run against run, on these examples."""

    probability: Share  # that a run of the row is better than one of the reference
    interval: Interval
    p_rank: Share  # of a rank test, which failed runs cannot blur
    p_rank_holm: Share | None = None  # corrected with the p of all pairs
    effect: Finite | None = None  # Hedges' g; None: no side varies


class Pair(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One metric of a row against the reference's."""

    name: str
    reference: str
    metric: str
    difference: Finite
    interval: Interval
    p: Share
    p_holm: Share  # corrected for the number of all tests
    test: str
    over: Over
    n: Count  # examples; of one fold on average
    groups: Count = 0  # that the examples belong to, and that are drawn in their place
    runs: tuple[Count, Count]  # of the row, of the reference; 0: a baseline
    folds: Count = 0  # that both have
    folds_won: Count | None = None  # in which the row is better
    paired: bool = False  # by seed, or by fold
    p_exact: Share | None = None  # McNemar: without the mid-p correction
    only_row: Count | None = None  # examples that only the row gets right
    only_reference: Count | None = None
    improvement: Improvement | None = None
    detectable: NonNegative | None = None  # the true difference that would be shown in 4 of 5 such comparisons
    margin: NonNegative | None = None
    p_equivalent: Share | None = None  # that the difference is within the margin, by two one-sided tests
    times: NonNegative | None = None  # as many examples (and runs) would show the margin, or one point
    doubt: str = ""  # why interval and p are not to be trusted
    question: str
    sentence: str
    details: list[str] = msgspec.field(default_factory=list)


class Comparison(Document, frozen=True, kw_only=True):
    """Evaluations of the same examples, the baselines last. The first column is `metric`."""

    SCHEMA: ClassVar[str] = SCHEMA

    data: Data  # of the first evaluation; n counts the examples that are compared, of a fold on average
    common: dict[str, Count] | None  # how many examples each had, if only the shared ones are compared
    reference: str
    metric: str
    columns: list[Column]
    rows: list[Row]
    pairs: list[Pair]

    @property
    def searches(self) -> list[str]:
        """A sentence for each row whose settings were chosen."""
        return [
            f"The settings of {row.name} are the best of {row.tries:,} that were tried on the validation part."
            for row in self.rows
            if row.tries
        ]

    @property
    def collapses(self) -> list[str]:
        """A sentence for each row of which runs have collapsed."""
        sentences = []
        for row in self.rows:
            if row.fallen:
                count, all_runs, why = len(row.fallen), len(row.runs), row.fallen[0].collapsed
                who = row.name if all_runs == 1 else f"{count} of {all_runs} runs of {row.name}"
                rate = ""
                if ends := row.success:
                    rate = f" (success rate {100 * (1 - count / all_runs):.0f} %, 95 % interval "
                    rate += f"{100 * ends.low:.0f} to {100 * ends.high:.0f} %)"
                sentences.append(f"{who} {'has' if count == 1 else 'have'} collapsed{rate}: {why}.")
        return sentences

    @property
    def doubts(self) -> list[str]:
        """A sentence for each row about what its runs may not show."""
        return [f"{row.name}: {row.doubt}." for row in self.rows if row.doubt]

    @property
    def untested(self) -> list[str]:
        """A sentence about runs of the reference's own recipe, if there are any."""
        tested = {self.reference, *(pair.name for pair in self.pairs)}
        names = [row.name for row in self.rows if row.name not in tested]
        verb, runs = ("is", "a run") if len(names) == 1 else ("are", "runs")
        text = f"{', '.join(names)} {verb} {runs} of the same recipe as {self.reference}, and not tested against it."
        return [text] if names else []

    def describe_intervals(self) -> str:
        """Return over what the intervals of each row are, in a sentence."""
        rows: dict[str, list[str]] = {}
        for row in self.rows:
            rows.setdefault(row.intervals_over, []).append(row.name)
        if len(rows) == 1:
            return f"95 % intervals are over {next(iter(rows))}."
        return "; ".join(f"95 % intervals of {', '.join(names)} are over {over}" for over, names in rows.items()) + "."

    @property
    def tests(self) -> int:
        """How many tests p is corrected for, those of ranks too."""
        return len(self.pairs) + sum(pair.improvement is not None for pair in self.pairs)

    @property
    def tested(self) -> list[Column]:
        """The columns whose differences are tested."""
        keys = {pair.metric for pair in self.pairs}
        return [column for column in self.columns if column.key in keys]
