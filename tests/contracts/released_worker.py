"""Reads and writes released_worker.sql, which has the SQL statements of the previous version.

Each release replaces that file. CONTRIBUTING.md has the command.
"""

import re
import sys
import textwrap
from pathlib import Path

import evershell.store.migrate
from evershell.store import cancellations, fleet_queries, postgres_store, rows

_FILE = Path(__file__).with_suffix(".sql")
_MIGRATIONS = Path(evershell.store.migrate.__file__).parent / "migrations"
_STATEMENT = re.compile(r"^-- name: (\w+)\n((?:(?!-- ).*\n)+)", re.MULTILINE)
_SCHEMA = re.compile(r"^-- schema: (\w+)$", re.MULTILINE)
# What test_old_worker.py reads, by the names of the constants in the store.
_READS = {
    *("lock_workspace", "current_task", "get_workspace", "list_workspaces", "list_own_workspaces"),
    *("get_task", "list_tasks", "list_events", "list_wanted_pods", "list_cancellations", "record"),
}


def released_statements() -> dict[str, str]:
    """The statements of the previous version, by name."""
    return {name: " ".join(text.split()) for name, text in _STATEMENT.findall(_FILE.read_text())}


def released_migration() -> str:
    """The id of the last migration of the previous version."""
    (migration,) = _SCHEMA.findall(_FILE.read_text())
    return str(migration)


def _current_statements() -> dict[str, str]:
    statements = {
        name.strip("_").lower(): value
        for name, value in (
            vars(postgres_store) | vars(fleet_queries) | vars(cancellations)
        ).items()
        if name.strip("_").lower() in _READS
    }
    for table, columns in (
        ("workspaces", rows.WORKSPACE_COLUMNS),
        ("tasks", rows.TASK_COLUMNS),
        ("events", rows.EVENT_COLUMNS),
    ):
        statements[f"insert_{table}"] = rows.insert(table, columns)
    return statements


def _main() -> None:
    lines = [
        "-- The statements of the store of the previous version, with their columns.",
        f"-- schema: {max(file.stem for file in _MIGRATIONS.glob('*.sql'))}",
    ]
    for name, text in _current_statements().items():
        lines += ["", f"-- name: {name}", *textwrap.wrap(text, 100, break_on_hyphens=False)]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    _main()
