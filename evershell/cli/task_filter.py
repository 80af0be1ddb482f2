"""The filter of the tasks that `cancel --all` cancels."""

from datetime import datetime
from typing import Any

import click

from evershell.client import TaskFilter

HELP = (
    "Only tasks that match, can be given several times: workspace=ID, created-by=USER, "
    "submitted-by=ID, submitted-before=TIME, metadata.KEY=VALUE."
)
_FIELDS = {"created-by": "created_by_user_id", "submitted-by": "submitted_by"}
_METADATA = "metadata."


def parse_filter(
    context: click.Context, parameter: click.Parameter, pairs: tuple[str, ...]
) -> TaskFilter | None:
    """The filter of the option's values; None without any."""
    if not pairs:
        return None
    fields: dict[str, Any] = {"workspace_ids": (), "metadata": {}}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise click.BadParameter(f"{pair!r} is not NAME=VALUE.")
        _add(fields, name, value)
    return TaskFilter(**fields)


def _add(fields: dict[str, Any], name: str, value: str) -> None:
    if name == "workspace":
        fields["workspace_ids"] += (value,)
    elif name.startswith(_METADATA):
        fields["metadata"][name.removeprefix(_METADATA)] = value
    elif name == "submitted-before":
        try:
            fields["submitted_before"] = datetime.fromisoformat(value)
        except ValueError:
            raise click.BadParameter(
                f"{value!r} is not a time; write 2026-11-24T18:03:00Z."
            ) from None
    elif name in _FIELDS and _FIELDS[name] not in fields:
        fields[_FIELDS[name]] = value
    else:
        problem = "was given twice" if name in _FIELDS else "cannot be filtered by"
        raise click.BadParameter(f"{name!r} {problem}.")
