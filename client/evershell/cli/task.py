"""The command `task`."""

import click

from evershell.cli import show
from evershell.cli.completion import complete_task, complete_workspace
from evershell.cli.options import Call, service_options
from evershell.cli.terminal import printable, say_lines
from evershell.client import Task


@click.command(help="Show one task of WORKSPACE.")
@click.argument("workspace", shell_complete=complete_workspace)
@click.argument("task", shell_complete=complete_task)
@service_options
def task(call: Call, workspace: str, task: str) -> None:
    """Prints the task."""
    found = call.client.get_task(workspace, task)
    if call.as_json:
        show.json_value(found.to_dict())
    else:
        _print(found)


def _print(found: Task) -> None:
    forced = ", forced" if found.forced else ""
    say_lines(f"task {printable(found.id)}: {show.status(found.status)}{forced}")
    show.line("workspace", found.workspace_id)
    show.line("does", show.first_line(found.description, 200))
    show.line("progress", f"{show.progress(found)}, at most {found.max_iterations}")
    if limits := _limits(found):
        show.line("limits", limits)
    show.line("created", show.time(found.created_at))
    if found.started_at is not None:
        show.line("started", show.time(found.started_at))
    if found.cancel_requested_at is not None:
        show.line(
            "cancelled", f"{show.time(found.cancel_requested_at)} by {found.cancel_requested_by}"
        )
        if found.cancel_reason:
            show.line("reason", found.cancel_reason)
    if found.cancel_force_at is not None and not found.has_ended:
        show.line("force at", show.time(found.cancel_force_at))
    if found.completed_at is not None:
        show.line("ended", show.time(found.completed_at))
    if found.reason and found.reason != found.cancel_reason:
        show.line("because", found.reason)
    if found.result:
        show.line("result", show.first_line(found.result, 200))
    used = found.usage
    show.line(
        "used",
        f"{used.model_calls} model calls, {used.tool_calls} tool calls, {used.input_tokens} input "
        f"tokens, {used.output_tokens} output tokens",
    )
    for name, value in found.metadata.items():
        show.line("metadata", f"{name}={value}")


def _limits(found: Task) -> str:
    """The limits that cancel the task. Empty without any."""
    limits, clauses = found.limits, []
    if limits is None:
        return ""
    if limits.max_duration is not None:
        clauses.append(f"{limits.max_duration.total_seconds():.12g} s")
    if limits.max_total_tokens is not None:
        clauses.append(f"{limits.max_total_tokens} tokens")
    if limits.force_after is not None:
        clauses.append(f"interrupted {limits.force_after.total_seconds():.12g} s after a limit")
    return ", ".join(clauses)
