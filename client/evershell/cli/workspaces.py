"""The command `workspaces`."""

from itertools import islice

import click

from evershell.cli import show
from evershell.cli.options import Call, service_options
from evershell.cli.tasks import LIMIT


@click.command(help="List the workspaces of your organization, newest first.")
@LIMIT
@service_options
def workspaces(call: Call, limit: int) -> None:
    """Prints one line for each workspace."""
    listed = list(islice(call.client.list_workspaces(page_size=min(limit, 200)), limit))
    if call.as_json:
        show.json_value({"workspaces": [workspace.to_dict() for workspace in listed]})
        return
    show.table(
        ["WORKSPACE", "STATUS", "CURRENT TASK", "CREATED", "NAME"],
        [
            (
                each.id,
                each.status.value,
                each.current_task_id or "-",
                show.time(each.created_at),
                each.name,
            )
            for each in listed
        ],
        "Your organization has no workspaces.",
    )
