"""Writes the generated parts of docs/: settings, help, jobs, shares, models, decisions, layers.

`make gen` runs it. `--check` compares instead of writing. `protos/generate.py` writes the page of
the errors.
"""

import argparse
import ast
import re
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import help_page
import model_page
import shares_page
from pydantic.fields import FieldInfo

from evershell.app.jobs import JOBS
from evershell.app.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "protos"))
from new_names import settings_of  # noqa: E402 - a module of protos/

DOCS = ROOT / "docs"
SERVER = ROOT / "server" / "evershell"
# Settings that `up` sets for its programs. Operators do not set them.
INTERNAL = ("run_id",)
# The first setting of each section. A section ends where the next section begins.
SECTIONS = {
    "state_dir": "State and database",
    "rest_port": "Ports and workers",
    "tls_cert_file": "TLS",
    "jwt_issuer": "Credentials",
    "oidc_client_id": "Sign-in of the console",
    "rate_limit": "Rate limits",
    "model": "Agents and models",
    "runtime_service": "Pods",
    "pod_image": "Kubernetes",
    "metrics_address": "Programs, metrics and logs",
    "webhook_allowed_networks": "Webhooks",
}
CONFIGURATION = """\
# Configuration

<!-- Written by `make gen` from the classes of settings (app/settings.py). Do not edit. -->

The settings of the service are environment variables, which the commands `up`, `serve`, `fleet`,
`edge` and `migrate` of `evershell` read when they start. A value that is not valid, or a variable
of an earlier version, stops the program with a message that says what to do.

<!-- not run: starts a stack, which runs until Ctrl-C -->
```sh
STATE_DIR=/srv/evershell WORKERS=4 METRICS_ADDRESS=127.0.0.1:9100 evershell up
```

The command line and the Python client have [their own variables](command-line.md#which-service).
"""
# The parts of every decision record, in this order.
PARTS = ["Context", "Decision", "Why not otherwise", "Consequences"]
DECISIONS = """\
# Decisions

<!-- Written by `make gen` from the records in this folder. Do not edit. -->

Why the service is built like this. Each record has the context, the decision, why not otherwise,
and the consequences. The [architecture](../architecture.md) says how the parts work together.

| number | decision |
|---|---|
"""


def configuration() -> str:
    """The page of the settings: a table for each section."""
    meanings = settings_of(SERVER)
    tables = dict.fromkeys(SECTIONS, "")
    section = ""
    for name, field in Settings.model_fields.items():
        if name in INTERNAL:
            continue
        if name in SECTIONS:
            section = name
        if name not in meanings:
            raise ValueError(f"{name} needs a docstring")
        meaning = " ".join(meanings[name].split())
        row = f"| `{name.upper()}` | {default(field)} | {values(field)} | {meaning} |\n"
        tables[section] += row
    head = "| variable | default | values | meaning |\n|---|---|---|---|\n"
    return CONFIGURATION + "".join(
        f"\n## {SECTIONS[name]}\n\n{head}{rows}" for name, rows in tables.items()
    )


def default(field: FieldInfo) -> str:
    """The default of a setting, written as the value of an environment variable."""
    if field.default_factory is not None:
        return "by memory"
    value = field.default
    if hasattr(value, "get_secret_value"):
        value = value.get_secret_value()
    return "" if value in (None, "") else f"`{_written(value)}`"


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


def values(field: FieldInfo) -> str:
    """The values that a setting can have, in words."""
    kind = field.annotation
    if get_origin(kind) is Literal:
        return ", ".join(f"`{each}`" for each in get_args(kind))
    if kind is bool:
        return "`on`, `off`"
    if kind in (int, float):
        return _range(field)
    return "file" if Path in get_args(kind) else "folder" if kind is Path else "text"


def _range(field: FieldInfo) -> str:
    limits = {
        name: _number(getattr(limit, name))
        for limit in field.metadata
        for name in ("ge", "gt", "le")
        if hasattr(limit, name)
    }
    least = limits.get("ge") or f"more than {limits['gt']}"
    return f"{least} to {limits['le']}" if "le" in limits else f"{least} or more"


def _number(value: float) -> str:
    return f"{value:,}" if value >= 100_000 else f"{value:g}" if value < 10_000 else str(value)


def decisions() -> str:
    """The index of the decision records."""
    rows = []
    for place, path in enumerate(sorted((DOCS / "decisions").glob("[0-9]*.md")), 1):
        text = path.read_text()
        number, title = re.match(r"# (\d+)[.:] (.*)\n", text).groups()  # type: ignore[union-attr]
        if int(number) != place or re.findall(r"^\*\*(.+?)\.\*\*", text, re.MULTILINE) != PARTS:
            raise ValueError(f"{path} needs the next number and the parts {PARTS}")
        rows.append(f"| {int(number)} | [{title[0].upper()}{title[1:]}]({path.name}) |\n")
    return DECISIONS + "".join(rows)


def operating() -> str:
    """docs/operating.md, with a table of the periodic jobs."""
    text = (DOCS / "operating.md").read_text()
    before, begin, rest = text.partition("<!-- begin: written by `make gen` from app/jobs.py -->\n")
    _, end, after = rest.partition("<!-- end: written by `make gen` -->\n")
    rows = (f"| `{job.name}` | {job.pause_seconds:g} s | {job.what} |\n" for job in JOBS)
    head = "| job | pause | what it does |\n|---|---|---|\n"
    return before + begin + head + "".join(rows) + end + after


def layers() -> str:
    """The picture of the packages of the server, one row for each layer of the import contract."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (rows,) = (
        each["layers"] for each in contracts["contracts"] if each.get("containers") == ["evershell"]
    )
    names = [row.split(" | ") for row in rows]
    packages = {path.parent.name for path in SERVER.glob("*/__init__.py")}
    if packages != {name for row in names for name in row}:
        raise ValueError("the import contract does not have exactly the packages of server/")
    height = 74 * len(names) + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 900 {height}" width="900"'
        f' height="{height}" role="img" font-family="system-ui, sans-serif" font-size="14">',
        "  <title>The packages of the server, in layers</title>",
        f'  <rect width="900" height="{height}" fill="#ffffff"/>',
    ]
    for row, packages_of_row in enumerate(names):
        width = 880 // len(packages_of_row)
        for column, name in enumerate(packages_of_row):
            parts += _box(name, 10 + column * width, 10 + row * 74, width - 10)
    parts.append(
        f'  <text x="450" y="{height - 8}" text-anchor="middle" font-size="12" fill="#475569">'
        "A package imports only what is below it.</text>"
    )
    return "\n".join([*parts, "</svg>", ""])


def _box(name: str, x: int, y: int, width: int) -> list[str]:
    """Draws a package as a box, with the first line of its docstring."""
    docstring = ast.get_docstring(ast.parse((SERVER / name / "__init__.py").read_text())) or ""
    lines = textwrap.wrap(docstring.split("\n")[0].rstrip("."), width // 7)
    middle = x + width // 2
    return [
        f'  <rect x="{x}" y="{y}" width="{width}" height="64" rx="6" fill="#eef2ff"'
        ' stroke="#4f46e5"/>',
        f'  <text x="{middle}" y="{y + 20}" text-anchor="middle" fill="#0f172a">{name}</text>',
        *(
            f'  <text x="{middle}" y="{y + 38 + 16 * number}" text-anchor="middle"'
            f' font-size="12" fill="#475569">{escape(line)}</text>'
            for number, line in enumerate(lines)
        ),
    ]


def pages() -> Iterator[tuple[Path, str]]:
    """Yields the path and the text of each page."""
    yield DOCS / "configuration.md", configuration()
    yield DOCS / "commands.md", help_page.page()
    yield DOCS / "operating.md", operating()
    yield DOCS / "shares.md", shares_page.page()
    yield DOCS / "model.md", model_page.page()
    yield DOCS / "decisions" / "index.md", decisions()
    yield DOCS / "pictures" / "layers.svg", layers()


def main() -> None:
    """Writes the pages.

    With --check, prints the pages that have drifted, and exits with 1 if there are any.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; compare")
    check = parser.parse_args().check
    drifted = [
        (path, text) for path, text in pages() if not path.exists() or path.read_text() != text
    ]
    if check and drifted:
        names = [str(path.relative_to(DOCS.parent)) for path, _ in drifted]
        sys.exit("\n".join(f"{name} has drifted; run `make gen`" for name in names))
    for path, text in drifted:
        path.write_text(text)


if __name__ == "__main__":
    main()
