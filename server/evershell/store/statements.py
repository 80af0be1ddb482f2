"""Reads the SQL of a module from the .sql file of the same name in the same package.

A file has statements, and parts that several statements share. A statement begins with a line
`-- name: …`, a part with `-- part: …`. Other comments are not sent to the database.

In statements and parts, `{name}` stands for an earlier part, or for a value that the module passes.
`{workspace}`, `{task}` and `{event}` stand for the columns that rows.py reads. `{w.task}` puts `w.`
before each of these columns.
"""

import re
from collections.abc import Callable
from importlib import resources
from types import SimpleNamespace

from evershell.store.rows import event_columns, task_columns, workspace_columns

_HEADER = re.compile(r"^-- (name|part): (\w+)\n", re.MULTILINE)
_COMMENT = re.compile(r"^ *--.*\n", re.MULTILINE)
_PLACE = re.compile(r"\{(?:([\w()]+)\.)?(\w+)\}")

Columns = Callable[[str], str]


def statements(
    module: str, package: str = "evershell.store", **values: str | int | Columns
) -> SimpleNamespace:
    """The statements and parts of `<module>.sql` in the package, as attributes.

    If a value is a function, it is called with the prefix for the columns, for example `w.`. Raises
    KeyError for an unknown name in braces.
    """
    known: dict[str, str | int | Columns] = {
        "workspace": workspace_columns,
        "task": task_columns,
        "event": event_columns,
        **values,
    }

    def text_of(place: re.Match[str]) -> str:
        value = known[place[2]]
        return value(f"{place[1]}." if place[1] else "") if callable(value) else str(value)

    text = (resources.files(package) / f"{module}.sql").read_text()
    _, *pieces = _HEADER.split(text)
    found = {}
    for name, body in zip(pieces[1::3], pieces[2::3], strict=True):
        plain = _COMMENT.sub("", body).strip().removesuffix(";")
        known[name] = found[name] = _PLACE.sub(text_of, plain)
    return SimpleNamespace(**found)
