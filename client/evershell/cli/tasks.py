"""The command `tasks`."""

import sys
from itertools import islice

import click

from evershell.cli import show
from evershell.cli.completion import complete_workspace
from evershell.cli.options import Call, service_options

LIMIT = click.option(
    "--limit",
    type=click.IntRange(1, sys.maxsize),
    default=20,
    metavar="N",
    help="The number of entries. Default: 20.",
)


@click.command(help="List the tasks of WORKSPACE, newest first.")
@click.argument("workspace", shell_complete=complete_workspace)
@LIMIT
@service_options
def tasks(call: Call, workspace: str, limit: int) -> None:
    """Prints one line for each task."""
    listed = list(islice(call.client.list_tasks(workspace, page_size=min(limit, 200)), limit))
    if call.as_json:
        show.json_value({"tasks": [task.to_dict() for task in listed]})
        return
    show.table(
        ["TASK", "STATUS", "ITERATIONS", "CREATED", "ENDED", "DESCRIPTION"],
        [
            (
                task.id,
                task.status.value,
                str(task.iterations),
                show.time(task.created_at),
                show.time(task.completed_at),
                show.first_line(task.description),
            )
            for task in listed
        ],
        f"Workspace {workspace} has no tasks.",
    )
