"""The tests of a comparison in words. What a sentence claims depends on what was drawn at random.

`A beats B` is said of recipes alone: of several runs on both sides, or of several runs against a baseline.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from dlcv_cli.results.comparison import Column, Pair
from dlcv_cli.results.evaluation import Over

ALARM = 0.05
POINT = 0.01  # the difference that a comparison should be able to show, of metrics in percent
QUESTIONS: dict[Over, str] = {
    "examples": "p-values over examples treat the test examples as the random sample: they ask whether the difference "
    "between these trained networks would hold on new examples. Other seeds may reverse it.",
    "seeds and examples": "p-values over seeds and examples treat both as random samples: they ask whether the recipes "
    "would differ if trained again with new seeds and tested on new examples.",
    "splits": "p-values over splits treat the division into training and test examples as random: they ask whether the "
    "recipes would differ if trained and tested on other examples of the same kind. The training parts of the folds "
    "overlap, which the test corrects for.",
}


@dataclass(frozen=True)
class Verdict:
    """A tested pair, its metric, and how many runs of each row have collapsed."""

    column: Column
    pair: Pair
    fallen: Mapping[str, int]

    @property
    def is_significant(self) -> bool:
        """Whether the corrected p is below 0.05."""
        return self.pair.p_holm < ALARM

    @property
    def is_ranked(self) -> bool:
        """Whether the runs of one row are shown to be better than the other's, one by one."""
        better = self.pair.improvement
        return better is not None and better.p_rank_holm is not None and better.p_rank_holm < ALARM

    @property
    def is_about_recipes(self) -> bool:
        """Whether both rows have several runs, or are baselines."""
        return self.pair.over != "examples" and 1 not in self.pair.runs

    def name_rows(self) -> tuple[str, str]:
        """Return both rows as a sentence names them: single runs as such."""
        names = (self.pair.name, self.pair.reference)
        if self.is_about_recipes:
            return names
        row, reference = (_name_runs(name, runs) for name, runs in zip(names, self.pair.runs, strict=True))
        return row, reference


def _name_runs(name: str, runs: int) -> str:
    return name if runs == 0 else f"this run of {name}" if runs == 1 else f"the runs of {name}"


def describe_verdict(verdict: Verdict) -> str:
    """Return a tested difference in words, the better one first where the corrected p is below 0.05."""
    pair, column = verdict.pair, verdict.column
    row, reference = verdict.name_rows()
    value, ends = pair.difference, (pair.interval.low, pair.interval.high)
    is_better = (value > 0) == column.higher_is_better
    if verdict.is_significant and value < 0:
        value, ends = -value, (-ends[1], -ends[0])
    interval = " to ".join(_format_end(column, end) for end in ends)
    details = f"95 % interval {interval}, {_describe_p(pair.p, pair.p_holm)}; {_describe_sample(pair)}"
    amount = column.format_amount(value)
    if not verdict.is_significant:
        sign = "+" if value >= 0 else ""
        between = f"no evidence of a difference between {row} and {reference}"
        mean = f"mean {column.noun}" if verdict.is_ranked else column.noun
        text = f"{between} in {mean} ({sign}{amount}, {details})"
        return f"{text}, but {_describe_ranks(pair)}" if verdict.is_ranked else text
    winner, loser = (row, reference) if is_better else (reference, row)
    if verdict.is_about_recipes:
        return f"{winner} beats {loser} by {amount} in {column.noun} ({details})" + "".join(_list_fallen(verdict))
    return f"{winner} did better than {loser} by {amount} in {column.noun} ({details}); other seeds may reverse it"


def _list_fallen(verdict: Verdict) -> Iterator[str]:
    pair = verdict.pair
    for name, runs in zip((pair.name, pair.reference), pair.runs, strict=True):
        if count := verdict.fallen.get(name, 0):
            yield f"; {count} of {runs} runs of {name} collapsed"


def _describe_sample(pair: Pair) -> str:
    """Return what was drawn at random, and whether it was paired."""
    if pair.over == "splits":
        return f"over {pair.folds} folds, paired by fold"
    examples = f"{pair.n:,} examples" + (f" in {pair.groups:,} groups" if pair.groups else "")
    if pair.over == "examples":
        return f"over {examples}"
    runs = sorted({count for count in pair.runs if count > 1})
    seeds = " and ".join(map(str, runs))
    return f"over {seeds} seeds and {examples}{', paired by seed' if pair.paired else ''}"


def describe_details(verdict: Verdict) -> list[str]:
    """Return what else is known of a tested difference, in sentences."""
    return [*_list_details(verdict)]


def _list_details(verdict: Verdict) -> Iterator[str]:
    pair, column = verdict.pair, verdict.column
    if pair.improvement and (verdict.is_significant or not verdict.is_ranked):  # else the sentence has it
        yield _describe_ranks(pair)
    if pair.folds_won is not None:
        yield f"{pair.name} is better than {pair.reference} in {pair.folds_won or 'none'} of {pair.folds} folds"
    if pair.p_equivalent is not None and pair.margin is not None:
        shown = "is" if pair.p_equivalent < ALARM else "is not shown to be"
        margin = _describe_margin(column, pair.margin)
        yield f"the difference {shown} within {margin} (two one-sided tests, {_describe_p(pair.p_equivalent)})"
    if pair.detectable is not None and not verdict.is_significant:
        text = f"a true difference of {column.format_amount(pair.detectable)} would be shown in 4 of 5 such comparisons"
        if pair.times is not None and pair.times > 1:
            aim = _describe_margin(column, pair.margin or POINT)
            times = f"{pair.times:,.0f}" if pair.times >= 10 else f"{pair.times:.1f}"
            more = {"examples": "examples", "splits": "examples", "seeds and examples": "runs and examples"}[pair.over]
            text += f"; {aim} would need about {times} times as many {more}"
        yield text
    if pair.doubt:
        yield f"interval and p may be off: {pair.doubt}"


def _describe_ranks(pair: Pair) -> str:
    """Return what is known of run against run; the better row comes first."""
    better = pair.improvement
    assert better
    first, second, share, sign = pair.name, pair.reference, better.probability, 1
    low, high = better.interval.low, better.interval.high
    if share < 0.5:
        first, second, share, sign, low, high = second, first, 1 - share, -1, 1 - high, 1 - low
    effect = "" if better.effect is None else f"; effect size g = {sign * better.effect:.2g}"
    return (
        f"a run of {first} is better than one of {second} with a probability of {100 * share:.0f} % "
        f"({100 * low:.0f} to {100 * high:.0f} %); rank test {_describe_p(better.p_rank, better.p_rank_holm)}{effect}"
    )


def _describe_margin(column: Column, value: float) -> str:
    points = 100 * value
    return f"{points:g} point{'' if points == 1 else 's'}" if column.percent else f"{value:g}"


def _format_end(column: Column, value: float) -> str:
    return f"{100 * value:.1f}" if column.percent else f"{value:.3g}"


def _describe_p(p: float, corrected: float | None = None) -> str:
    text = f"p = {_format_p(p)}"
    if corrected is not None and _format_p(corrected) != _format_p(p):
        text += f", corrected {_format_p(corrected)}"
    return text.replace("= <", "< ")


def _format_p(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.2g}"
