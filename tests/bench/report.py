"""The table, bench.json, and the comparison with an earlier bench.json."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.bench.figures import Row, Summary, paired_ratios

# A ratio that is worse by more than this factor is marked. Ratios of two runs on an idle machine
# differ by less.
TOLERANCE = 1.15
# Pairs of equal sides are all on the same side of 1 in one of 16 runs.
_PAIRS_OF_VERDICT = 5
# The unit of rows that are ratios. Absolute figures change with the machine and the hour.
RATIO = "×"


@dataclass(frozen=True, slots=True)
class Change:
    """A row that an earlier run measured too."""

    before: float
    after: float
    is_worse: bool


def document(
    summaries: Sequence[Summary], environment: Mapping[str, Any], skipped: Mapping[str, str]
) -> str:
    """The content of bench.json."""
    content = {
        "environment": environment,
        "skipped": skipped,
        "rows": [summary.as_json() for summary in summaries],
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def changes(summaries: Sequence[Summary], earlier: str) -> dict[str, Change]:
    """Compares the ratios with those of an earlier bench.json. Empty if that cannot be read."""
    try:
        rows = {row["name"]: row for row in json.loads(earlier)["rows"]}
    except (ValueError, KeyError, TypeError):
        return {}
    found = {}
    for summary in summaries:
        row = rows.get(summary.row.name)
        if row is not None and summary.row.unit == row["unit"] == RATIO:
            before, after = float(row["median"]), summary.median
            found[summary.row.name] = Change(before, after, is_worse(summary.row, before, after))
    return found


def is_worse(row: Row, before: float, after: float) -> bool:
    """Whether the row got worse by more than the tolerance."""
    if row.improves_downwards:
        return after > before * TOLERANCE
    return after < before / TOLERANCE


def print_table(
    summaries: Sequence[Summary],
    changed: Mapping[str, Change],
    skipped: Mapping[str, str],
    console: Console,
) -> None:
    """Prints all rows, and the change of those that the committed bench.json has."""
    table = Table(title="make bench", title_justify="left")
    table.add_column("row")
    for column in ("unit", "runs", "median", "min", "max", "target", "holds", "committed"):
        table.add_column(column, justify="right", no_wrap=True)
    for summary in summaries:
        change = changed.get(summary.row.name)
        table.add_row(*cells(summary), "" if change is None else _change(change))
    console.print(table)
    for name, reason in skipped.items():
        console.print(f"left out: {name}: {reason}", highlight=False)
    targets = sum(summary.holds is not None for summary in summaries)
    console.print(f"{targets - len(missed(summaries))} of {targets} targets hold.", highlight=False)


def missed(summaries: Sequence[Summary]) -> set[str]:
    """The names of the rows whose target does not hold."""
    return {summary.row.name for summary in summaries if summary.holds is False}


def print_comparison(
    before: Sequence[Summary], after: Sequence[Summary], names: tuple[str, str], console: Console
) -> None:
    """Prints the rows of two sides that were measured in turn, and before ÷ after pair by pair."""
    table = Table(title=f"before: {names[0]}, after: {names[1]}", title_justify="left")
    table.add_column("row")
    for column in ("unit", "runs", "before", "after", "before ÷ after", "min", "max", "verdict"):
        table.add_column(column, justify="right", no_wrap=True)
    found = {summary.row.name: summary for summary in before}
    for summary in after:
        old = found.get(summary.row.name)
        ratios = paired_ratios(old, summary) if old else []
        if old is None or not ratios:
            continue
        ratio = Summary(summary.row, ratios)
        table.add_row(
            summary.row.name,
            summary.row.unit,
            str(len(ratios)),
            number(old.median),
            number(summary.median),
            *map(number, (ratio.median, min(ratios), max(ratios))),
            verdict(summary.row, ratios),
        )
    console.print(table)


def verdict(row: Row, ratios: Sequence[float]) -> str:
    """`better` or `worse` if before ÷ after is on one side of 1 in every pair; else empty.

    Also empty for few pairs, which are on the same side by chance.
    """
    if len(ratios) < _PAIRS_OF_VERDICT or min(ratios) <= 1 <= max(ratios):
        return ""
    return "better" if (min(ratios) > 1) == row.improves_downwards else "worse"


def cells(summary: Summary) -> list[str]:
    """The cells of a row."""
    row = summary.row
    return [
        row.name,
        row.unit,
        str(len(summary.values)),
        number(summary.median),
        number(min(summary.values)),
        number(max(summary.values)),
        "" if row.target is None else str(row.target),
        {None: "", True: "yes", False: "NO"}[summary.holds],
    ]


def _change(change: Change) -> str:
    return f"{number(change.before)}{' WORSE' if change.is_worse else ''}"


def number(value: float) -> str:
    """Three significant digits, and thousands with a comma."""
    if abs(value) >= 1_000:
        return f"{value:,.0f}"
    return f"{float(f'{value:.3g}'):g}"
