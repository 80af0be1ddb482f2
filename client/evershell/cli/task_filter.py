"""The filter of `cancel --filter`."""

from datetime import datetime
from typing import Any

import click

from evershell.client import TaskFilter

HELP = (
    "Cancel every task that matches, can be given several times: task=ID, workspace=ID, "
    "created-by=USER, submitted-by=ID, submitted-before=TIME, metadata.KEY=VALUE."
)
_LISTS = {"task": "task_ids", "workspace": "workspace_ids"}
_FIELDS = {"created-by": "created_by_user_id", "submitted-by": "submitted_by"}
_METADATA = "metadata."


def parse_filter(
    context: click.Context, parameter: click.Parameter, pairs: tuple[str, ...]
) -> TaskFilter | None:
    """The filter of the option's values; None without any."""
    if not pairs:
        return None
    fields: dict[str, Any] = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        if not value:
            raise click.BadParameter(f"{pair!r} is not NAME=VALUE.")
        _add(fields, name, value)
    return TaskFilter(**fields)


def _add(fields: dict[str, Any], name: str, value: str) -> None:
    key = name.removeprefix(_METADATA)
    if name in _LISTS:
        fields[_LISTS[name]] = (*fields.get(_LISTS[name], ()), value)
    elif name.startswith(_METADATA) and key not in fields.get("metadata", {}):
        fields.setdefault("metadata", {})[key] = value
    elif name == "submitted-before" and "submitted_before" not in fields:
        try:
            fields["submitted_before"] = datetime.fromisoformat(value)
        except ValueError:
            raise click.BadParameter(
                f"{value!r} is not a time; write 2026-11-24T18:03:00Z."
            ) from None
    elif name in _FIELDS and _FIELDS[name] not in fields:
        fields[_FIELDS[name]] = value
    else:
        is_known = name in (*_FIELDS, "submitted-before") or name.startswith(_METADATA)
        problem = "was given twice" if is_known else "is not the name of a filter"
        raise click.BadParameter(f"{name!r} {problem}.")
