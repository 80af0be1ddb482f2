"""The command `audit`."""

from contextlib import suppress
from datetime import UTC, datetime, timedelta

import click

from evershell.cli import show
from evershell.cli.completion import complete_workspace
from evershell.cli.lists import first, limit_option, page_size, print_count
from evershell.cli.options import Call, service_options
from evershell.cli.values import DURATION


@click.command(help="List the audit log, newest first: who changed what, and who was refused.")
@click.option(
    "--workspace",
    metavar="WORKSPACE",
    shell_complete=complete_workspace,
    help="Only calls about this workspace.",
)
@click.option("--task", metavar="ID", help="Only calls about this task.")
@click.option("--actor", metavar="ID", help="Only calls of this user or API key.")
@click.option("--rpc", metavar="NAME", help="Only calls of this method, for example CancelTask.")
@click.option(
    "--outcome",
    metavar="TEXT",
    help="Only calls with this outcome, for example accepted or permission_denied.",
)
@click.option(
    "--since", type=DURATION, metavar="DURATION", help="Only calls of the last 30m, 12h, 7d."
)
@limit_option(default=20)
@service_options
def audit(
    call: Call,
    workspace: str | None,
    task: str | None,
    actor: str | None,
    rpc: str | None,
    outcome: str | None,
    since: float | None,
    limit: int,
) -> None:
    """Prints one line for each entry."""
    start = None
    if since is not None:
        # If the start would be before the year 1, the list has no start time.
        with suppress(OverflowError):
            start = datetime.now(UTC) - timedelta(seconds=since)
    entries = call.client.list_audit_entries(
        workspace_id=workspace,
        task_id=task,
        actor_id=actor,
        rpc=rpc,
        outcome=outcome,
        start_time=start,
        page_size=page_size(limit),
    )
    listed, has_more = first(entries, limit)
    if call.as_json:
        show.json_value({"entries": [entry.to_dict() for entry in listed]})
        return
    show.table(
        ["TIME", "CALL", "OUTCOME", "ACTOR", "WORKSPACE", "TASK", "FROM", "REASON"],
        [
            (
                show.time(entry.time),
                entry.rpc,
                entry.outcome,
                entry.actor_id,
                entry.workspace_id or "-",
                entry.task_id or "-",
                entry.client_address,
                show.first_line(entry.reason),
            )
            for entry in listed
        ],
        "No entry matches.",
    )
    print_count(len(listed), "entry", has_more=has_more)
