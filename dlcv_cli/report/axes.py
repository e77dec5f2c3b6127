"""The axes of figures: from where to where, in which scale, with which ticks and labels."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from dlcv_cli.results.comparison import format_number


@dataclass(frozen=True)
class Axis:
    """From `low` to `high`; `percent` and `small` as in format_number; `whole`: ticks at whole numbers only."""

    title: str
    low: float
    high: float
    log: bool = False
    percent: bool = False
    whole: bool = False
    small: bool = True

    def place(self, value: float) -> float:
        """Return the position of a value, 0 to 1; values beyond an end are at the end."""
        inside = min(max(value, self.low), self.high)
        if self.log:
            return math.log(inside / self.low) / math.log(self.high / self.low)
        return (inside - self.low) / (self.high - self.low)

    def label(self, value: float) -> str:
        """Return a value in full."""
        return f"{value:,.0f}" if self.whole else format_number(value, self.percent, small=self.small)

    def tick_label(self, value: float) -> str:
        """Return a value in short, as at a tick."""
        return f"{100 * value:.4g}" if self.percent else f"{value:,.0f}" if self.whole else f"{value:.4g}"

    def low_high(self) -> str:
        """Return both ends in short."""
        return f"{self.tick_label(self.low)} to {self.tick_label(self.high)}"

    def ticks(self, most: int = 6) -> list[float]:
        """Return round numbers within the ends, at most `most` of them."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for steps in ((1,), (1, 3), (1, 2, 5)):
                ticks = [step * 10.0**power for power in powers for step in steps]
                ticks = [tick for tick in ticks if self.low <= tick <= self.high]
                if len(ticks) >= 3:
                    break
            if len(ticks) >= 2:
                return ticks[:: math.ceil(len(ticks) / most)]
        scale = 100 if self.percent else 1
        span = (self.high - self.low) * scale
        power = 10.0 ** math.floor(math.log10(span / most))
        step = next(power * s for s in (1, 2, 5, 10, 20) if span / (power * s) <= most)
        step = max(step, 1.0) if self.whole else step
        first = math.ceil(self.low * scale / step - 1e-9)
        last = math.floor(self.high * scale / step + 1e-9)
        return [round(k * step, 12) / scale for k in range(first, last + 1)]


def spanning_axis(
    title: str, values: Iterable[float], *, log: bool = False, percent: bool = False, whole: bool = False
) -> Axis:
    """Return the axis that spans the values with a small margin; linear if one of them is not above 0."""
    spanned = list(values) or [0.0, 1.0]
    low, high = min(spanned), max(spanned)
    if log and low > 0:
        return Axis(title, low / 1.25, high * 1.25, log=True, percent=percent)
    margin = 0.04 * (high - low) or (0.5 if whole else 0.01 if percent else 0.05 * abs(high) or 0.5)
    share = percent and low >= 0  # shares lie between 0 and 100 %
    return Axis(
        title,
        max(0, low - margin) if share else low - margin,
        min(1, high + margin) if share else high + margin,
        percent=percent,
        whole=whole,
    )
