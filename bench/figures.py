"""The arithmetic of the bench: percentiles, targets, and rows that summarise rounds."""

import math
import operator
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# The figures of one window (bench.plan.Window), by name.
Figures = Mapping[str, float]
# The figures of one round, by the name of the window.
Round = Mapping[str, Figures]

_COMPARISONS: dict[str, Callable[[float, float], bool]] = {"≤": operator.le, "≥": operator.ge}


@dataclass(frozen=True, slots=True)
class Target:
    """A limit for the median of a row: `≤` for an upper limit, `≥` for a lower limit."""

    comparison: str
    limit: float

    def holds(self, value: float) -> bool:
        """Whether the value is within the limit."""
        return _COMPARISONS[self.comparison](value, self.limit)

    def __str__(self) -> str:
        return f"{self.comparison} {self.limit:g}"


def at_most(limit: float) -> Target:
    """The target of a row in which less is better."""
    return Target("≤", limit)


def at_least(limit: float) -> Target:
    """The target of a row in which more is better."""
    return Target("≥", limit)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A row of the table: how its value is computed in each round, and its target.

    `value` takes the figures of one round, so a ratio compares windows of the same round, which
    ran one after the other. `value` raises KeyError if the round lacks a window.
    """

    name: str
    unit: str
    value: Callable[[Round], float]
    target: Target | None = None
    # Whether a smaller value is better. Used only if the row has no target.
    less_is_better: bool = True

    @property
    def windows(self) -> set[str]:
        """The windows that the value is computed from."""
        probe = _Probe()
        self.value(probe)
        return probe.windows

    @property
    def improves_downwards(self) -> bool:
        """Whether a smaller value is better."""
        return self.less_is_better if self.target is None else self.target.comparison == "≤"


class _Probe(dict[str, Figures]):
    """A round in which every figure is 1. Records which windows the `value` of a row reads."""

    def __init__(self) -> None:
        self.windows: set[str] = set()

    def __missing__(self, window: str) -> Figures:
        self.windows.add(window)
        return defaultdict(lambda: 1.0)


@dataclass(frozen=True, slots=True)
class Summary:
    """A row with its values from all rounds."""

    row: Row
    # One value for each round, in order.
    values: Sequence[float]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def holds(self) -> bool | None:
        """Whether the median is within the target; None without a target."""
        return None if self.row.target is None else self.row.target.holds(self.median)

    def as_json(self) -> dict[str, Any]:
        """The row for bench.json."""
        return {
            "name": self.row.name,
            "unit": self.row.unit,
            "runs": len(self.values),
            "median": _rounded(self.median),
            "min": _rounded(min(self.values)),
            "max": _rounded(max(self.values)),
            "target": None if self.row.target is None else str(self.row.target),
            "holds": self.holds,
        }


def summarise(rows: Sequence[Row], rounds: Sequence[Round]) -> list[Summary]:
    """Computes the values of each row. Leaves out rows without a value.

    A row has no value for a round that lacks one of the row's windows.
    """
    summaries = []
    for row in rows:
        values = []
        for figures in rounds:
            try:
                values.append(row.value(figures))
            except KeyError:
                continue
        if values:
            summaries.append(Summary(row, values))
    return summaries


def paired_ratios(before: Summary, after: Summary) -> list[float]:
    """The ratios before ÷ after of the first values, the second values, and so on.

    Leaves out a pair in which `after` is 0.
    """
    return [old / new for old, new in zip(before.values, after.values, strict=False) if new]


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` of all values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def ratio(figure: str, window: str, to: str) -> Callable[[Round], float]:
    """A row's value: a figure of one window divided by a figure of another in the same round."""
    return lambda figures: figures[window][figure] / figures[to][figure]


def figure(name: str, window: str) -> Callable[[Round], float]:
    """A row's value: a figure of one window."""
    return lambda figures: figures[window][name]


def _rounded(value: float) -> float:
    """Four significant digits."""
    return float(f"{value:.4g}")
