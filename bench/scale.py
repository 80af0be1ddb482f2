"""`make scale`: draws the pictures for docs/scale.md from bench.json.

    python -m bench.scale

Also writes the tables of docs/scale.md, and the table of targets in docs/hot-path.md.

Rows in docs/scale/idle_fleet.jsonl, the output of `python -m bench.idle_fleet`, replace the rows of
bench.json for idle agents. A picture is drawn even if some of its rows are missing. The document
and the output of this script name the missing rows.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import targets
from bench.curves import PICTURES, Curve, Measured, Picture
from bench.report import number
from tests.support.stack import ROOT

DOCUMENT = ROOT / "docs" / "scale.md"
_FOLDER = ROOT / "docs" / "scale"
BENCH_JSON = ROOT / "bench.json"
IDLE_FLEET = _FOLDER / "idle_fleet.jsonl"
_BEGIN = "<!-- Written by `make scale`. Do not edit up to the end mark. -->\n"
_END = "<!-- The end of what `make scale` writes. -->"


class UnusableDocumentError(Exception):
    """Raised if a document has no place for the tables."""


def read(bench: Path, *others: Path) -> tuple[Measured, Mapping[str, Any]]:
    """The rows of all files, and the environment in bench.json. A missing file has no rows.

    If several files have the same row, the last file counts, so that a curve comes from one run.
    """
    document = json.loads(bench.read_text()) if bench.exists() else {}
    lines = [line for other in others if other.exists() for line in other.read_text().splitlines()]
    rows = [*document.get("rows", []), *map(json.loads, lines)]
    measured = {row["name"]: (row["median"], row["min"], row["max"]) for row in rows}
    return measured, document.get("environment", {})


def block(measured: Measured, environment: Mapping[str, Any]) -> str:
    """The generated part of the document, in Markdown."""
    parts = [_introduction(environment)]
    for picture in PICTURES:
        parts.append(f"### {picture.title}")
        if picture.panels(measured):
            parts.append(f"![{picture.title}](scale/{picture.name}.svg)")
        if any(curve.has_values(measured) for curve in picture.curves):
            parts.append(_table(picture, measured))
        if missing := picture.missing(measured):
            parts.append(f"Not measured: {'; '.join(missing)}.")
    return "\n\n".join(parts) + "\n"


def replaced(document: str, content: str) -> str:
    """The document with new content between the marks. Raises UnusableDocumentError."""
    before, begins, rest = document.partition(_BEGIN)
    _, ends, after = rest.partition(_END)
    if not (begins and ends):
        raise UnusableDocumentError(f"the document lacks the mark {_BEGIN.strip()} or {_END}")
    return f"{before}{_BEGIN}\n{content}\n{_END}{after}"


def _introduction(environment: Mapping[str, Any]) -> str:
    if not environment:
        return "`bench.json` is absent; `make bench` writes it."
    length = "a short run" if environment.get("quick") else "a full run"
    programs = (f"{name} {environment[name]}" for name in ("python", "grpcio", "postgresql"))
    return (
        f"Medians of {length} of `make bench` at commit {environment['commit']},\n"
        f"with the smallest and the largest value, on {environment['cores']} shared cores,\n"
        f"with {', '.join(programs)}."
    )


def _table(picture: Picture, measured: Measured) -> str:
    header = [picture.axis, *picture.values]
    lines = [header, ["---", *("---:" for _ in picture.values)]]
    for curve in picture.curves:
        cells = (_cell(curve, measured, x) for x in picture.values)
        lines.append([f"{curve.label}, {curve.unit}", *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(curve: Curve, measured: Measured, x: str) -> str:
    median, spread = curve.median(measured, x), curve.range(measured, x)
    if median is None:
        return ""
    if spread is None:
        return number(median)
    return f"{number(median)} ({number(spread[0])} to {number(spread[1])})"


def documents() -> dict[Path, str]:
    """The text of each page, with the rows that exist."""
    measured, environment = read(BENCH_JSON, IDLE_FLEET)
    rows = json.loads(BENCH_JSON.read_text())["rows"]
    of_targets = f"{_introduction(environment)}\n\n{targets.table(rows)}\n"
    return {
        page: replaced(page.read_text(), content)
        for page, content in (
            (DOCUMENT, block(measured, environment)),
            (targets.DOCUMENT, of_targets),
        )
    }


def main() -> int:
    """Writes the tables and the pictures. Returns the exit code."""
    # Imported here: only `make scale` needs the package that draws.
    from bench import pictures

    measured, _ = read(BENCH_JSON, IDLE_FLEET)
    for page, text in documents().items():
        page.write_text(text)
    for picture in PICTURES:
        file = _FOLDER / f"{picture.name}.svg"
        if panels := picture.panels(measured):
            file.write_text(pictures.draw(picture, panels, measured))
        else:
            file.unlink(missing_ok=True)
        for row in picture.missing(measured):
            print(f"{picture.title}: no row {row!r}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
