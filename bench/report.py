"""The table, bench.json, and the comparison of two sides."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.figures import Row, Summary, paired_ratios

# The number of ratios that a verdict needs. If both sides are equally fast, all 5 ratios are on the
# same side of 1 in only one of 16 runs.
_PAIRS_OF_VERDICT = 5


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


def print_table(summaries: Sequence[Summary], skipped: Mapping[str, str], console: Console) -> None:
    """Prints all rows, and what was left out."""
    table = Table(title="make bench", title_justify="left")
    table.add_column("row")
    for column in ("unit", "runs", "median", "min", "max", "target", "holds"):
        table.add_column(column, justify="right", no_wrap=True)
    for summary in summaries:
        table.add_row(*cells(summary))
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
    """Prints the medians and the ratios before ÷ after of each row that both sides have."""
    table = Table(title=f"before: {names[0]}, after: {names[1]}", title_justify="left")
    table.add_column("row")
    for column in ("unit", "runs", "before", "after", "before ÷ after", "min", "max", "verdict"):
        table.add_column(column, justify="right", no_wrap=True)
    by_name = {summary.row.name: summary for summary in before}
    for summary in after:
        old = by_name.get(summary.row.name)
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
    """`better` or `worse` if all ratios before ÷ after are on the same side of 1; else empty.

    Also empty if there are too few ratios, which can be on the same side by chance.
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


def number(value: float) -> str:
    """The number with three significant digits; from 1,000 on, as an integer with commas."""
    if abs(value) >= 1_000:
        return f"{value:,.0f}"
    return f"{float(f'{value:.3g}'):g}"
