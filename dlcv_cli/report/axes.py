"""Axes of figures: what they span, where their ticks lie, how numbers on them are said."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


def number(value: float, percent: bool = False, signed: bool = False, small: bool = True) -> str:
    """A number as people read it: `0.1234`, where `small` values count `6.91e-05`; a fraction as percent, `12.34`."""
    sign = "+" if signed else ""
    if percent:
        return f"{100 * value:{sign}.2f}"
    return f"{value:{sign}.3g}" if small and abs(value) < 1e-2 else f"{value:{sign}.4f}"


@dataclass(frozen=True)
class Axis:
    """From `low` to `high`; `percent` and `small` as `number` has them, `whole` has ticks at whole numbers only."""

    title: str
    low: float
    high: float
    log: bool = False
    percent: bool = False
    whole: bool = False
    small: bool = True

    def place(self, value: float) -> float:
        """Where a value lies, from 0 to 1; what is beyond the ends lies at the end."""
        inside = min(max(value, self.low), self.high)
        if self.log:
            return math.log(inside / self.low) / math.log(self.high / self.low)
        return (inside - self.low) / (self.high - self.low)

    def label(self, value: float) -> str:
        """A value of this axis in full."""
        return f"{value:,.0f}" if self.whole else number(value, self.percent, small=self.small)

    def tick_label(self, value: float) -> str:
        """A value at a tick, short."""
        return f"{100 * value:.4g}" if self.percent else f"{value:,.0f}" if self.whole else f"{value:.4g}"

    def low_high(self) -> str:
        """Both ends, short."""
        return f"{self.tick_label(self.low)} to {self.tick_label(self.high)}"

    def ticks(self, most: int = 6) -> list[float]:
        """Round numbers within the ends, at most so many."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for steps in ((1,), (1, 3), (1, 2, 5)):
                found = [step * 10.0**power for power in powers for step in steps]
                found = [value for value in found if self.low <= value <= self.high]
                if len(found) >= 3:
                    break
            if len(found) >= 2:
                return found[:: math.ceil(len(found) / most)]
        scale = 100 if self.percent else 1
        span = (self.high - self.low) * scale
        power = 10.0 ** math.floor(math.log10(span / most))
        step = next(power * s for s in (1, 2, 5, 10, 20) if span / (power * s) <= most)
        step = max(step, 1.0) if self.whole else step
        first = math.ceil(self.low * scale / step - 1e-9)
        last = math.floor(self.high * scale / step + 1e-9)
        return [round(k * step, 12) / scale for k in range(first, last + 1)]


def over(title: str, values: Iterable[float], *, log: bool = False, percent: bool = False, whole: bool = False) -> Axis:
    """The axis that spans these values with a little room at both ends; linear when one of them is not above 0."""
    found = list(values) or [0.0, 1.0]
    low, high = min(found), max(found)
    if log and low > 0:
        return Axis(title, low / 1.25, high * 1.25, log=True, percent=percent)
    room = 0.04 * (high - low) or (0.5 if whole else 0.01 if percent else 0.05 * abs(high) or 0.5)
    share = percent and low >= 0  # there is nothing beyond 0 and 100 %
    return Axis(
        title,
        max(0, low - room) if share else low - room,
        min(1, high + room) if share else high + room,
        percent=percent,
        whole=whole,
    )
