"""The targets in docs/hot-path.md: their figures, and why some are missed.

`make scale` writes the table of all targets from bench.json. The list of missed targets is written
by hand. Each item of the list begins with the name of the row in bold.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from bench.report import number
from tests.support.stack import ROOT

DOCUMENT = ROOT / "docs" / "hot-path.md"
_MISSED = re.compile(r"^- \*\*(.+?)\*\*", re.MULTILINE)


def table(rows: Iterable[Mapping[str, Any]]) -> str:
    """The rows of bench.json that have a target, in Markdown."""
    lines = ["| row | median (min to max) | runs | target | holds |", "|---|---|---|---|---|"]
    lines += [
        f"| {row['name']} | {number(row['median'])} {row['unit']} "
        f"({number(row['min'])} to {number(row['max'])}) | {row['runs']} "
        f"| {row['target']} | {'yes' if row['holds'] else 'no'} |"
        for row in rows
        if row["target"] is not None
    ]
    return "\n".join(lines)


def listed_as_missed() -> set[str]:
    """The names of the rows for which the page explains why the target is missed."""
    return set(_MISSED.findall(DOCUMENT.read_text()))
