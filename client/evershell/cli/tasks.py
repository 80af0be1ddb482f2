"""The commands `tasks` and `task`."""

from datetime import timedelta
from functools import partial
from typing import Any

import click

from evershell.cli import show
from evershell.cli.completion import complete_task, complete_workspace
from evershell.cli.get import flags
from evershell.cli.lists import (
    first,
    having,
    limit_option,
    page_size,
    print_count,
    status_option,
)
from evershell.cli.options import Call, service_options
from evershell.cli.terminal import printable, say_lines
from evershell.client import CallError, Client, Task, TaskStatus

# How many lines of output are shown for each running call.
_OUTPUT_LINES = 10


@click.command(
    help="List the tasks of WORKSPACE, all running tasks, or a tree of tasks, newest first."
)
@click.argument("workspace", required=False, shell_complete=complete_workspace)
@partial(flags, Client.list_tasks)
@click.option("--root", metavar="ID", help="List this task and all its descendants.")
@click.option("--parent", metavar="ID", help="List the children of this task.")
@status_option(TaskStatus)
@limit_option()
@service_options
def tasks(
    call: Call,
    workspace: str | None,
    root: str | None,
    parent: str | None,
    statuses: tuple[str, ...],
    limit: int | None,
    **filters: Any,
) -> None:
    """Prints one line for each task."""
    if workspace is None and root is None and parent is None and not any(filters.values()):
        raise click.UsageError(
            "Missing argument 'WORKSPACE'. --active lists what runs in all workspaces."
        )
    pages = call.client.list_tasks(
        workspace,
        root_task_id=root,
        parent_task_id=parent,
        page_size=page_size(limit, statuses),
        **filters,
    )
    listed, has_more = first(having(pages, statuses), limit)
    if call.as_json:
        show.json_value({"tasks": [task.to_dict() for task in listed]})
        return
    places = [] if workspace else ["WORKSPACE"]
    show.table(
        ["TASK", *places, "STATUS", "ITERATIONS", "CREATED", "ENDED", "DESCRIPTION"],
        [
            (
                task.id,
                *([task.workspace_id] if places else []),
                task.status.value,
                str(task.iterations),
                show.time(task.created_at),
                show.time(task.completed_at),
                show.first_line(task.description),
            )
            for task in listed
        ],
        f"Workspace {workspace} has no tasks."
        if workspace and not statuses and not any(filters.values())
        else "There are no such tasks.",
    )
    print_count(len(listed), "task", has_more=has_more)


@click.command(help="Show one task of WORKSPACE.")
@click.argument("workspace", shell_complete=complete_workspace)
@click.argument("task", shell_complete=complete_task)
@service_options
def task(call: Call, workspace: str, task: str) -> None:
    """Prints the task."""
    read = call.client.get_task(workspace, task)
    if call.as_json:
        show.json_value(read.to_dict())
        return
    _print(read)
    if read.status is TaskStatus.RUNNING:
        _print_now(call, read)


def _print_now(call: Call, task: Task) -> None:
    """Prints the calls that run, each with the end of its output."""
    try:
        current = call.client.get_current_iteration(task.workspace_id, task.id)
    except CallError as error:
        # The command does not fail, because the task itself was printed.
        show.line("now", error.message)
        return
    for each in current.calls:
        kind = each.phase.replace("_", " ")
        since = show.elapsed(timedelta(milliseconds=each.duration_ms))
        show.line("now", f"{kind} for {since}: {each.name} {each.arguments}".rstrip(": "))
        for line in each.output.splitlines()[-_OUTPUT_LINES:]:
            show.line("", line)


def _print(task: Task) -> None:
    forced = ", forced" if task.forced else ""
    say_lines(f"task {printable(task.id)}: {show.status(task.status)}{forced}")
    show.line("workspace", task.workspace_id)
    if task.parent_task_id:
        show.line("parent", f"{task.parent_task_id}, root {task.root_task_id}")
    show.line("does", show.first_line(task.description, 200))
    show.line("progress", f"{show.progress(task)}, at most {task.max_iterations}")
    if task.iteration_lost:
        show.line("lost", "The task ended during an iteration that is not on record.")
    if limits := _limits(task):
        show.line("limits", limits)
    show.line("created", show.time(task.created_at))
    if task.started_at is not None:
        show.line("started", show.time(task.started_at))
    if task.cancel_requested_at is not None:
        show.line(
            "cancelled", f"{show.time(task.cancel_requested_at)} by {task.cancel_requested_by}"
        )
        if task.cancel_reason:
            show.line("cancel reason", task.cancel_reason)
    if task.cancel_force_at is not None and not task.has_ended:
        show.line("force at", show.time(task.cancel_force_at))
    if task.completed_at is not None:
        show.line("ended", show.time(task.completed_at))
    if task.end_reason and task.end_reason != task.cancel_reason:
        show.line("end reason", task.end_reason)
    if task.result:
        show.line("result", show.first_line(task.result, 200))
    used = task.usage
    show.line(
        "used",
        f"{used.model_calls} model calls, {used.tool_calls} tool calls, {used.input_tokens} input "
        f"tokens, {used.output_tokens} output tokens",
    )
    # The interrupted call may have cost more than its endpoint had reported.
    least = "at least " if task.forced else ""
    cost = "unknown" if used.cost is None else f"{least}{used.cost:f} USD, as reported"
    show.line("cost", cost)
    for name, value in task.metadata.items():
        show.line("metadata", f"{name}={value}")


def _limits(task: Task) -> str:
    """The limits that cancel the task; empty if there are none."""
    limits, clauses = task.limits, []
    if limits is None:
        return ""
    if limits.max_duration is not None:
        clauses.append(f"{limits.max_duration.total_seconds():.12g} s")
    if limits.max_total_tokens is not None:
        clauses.append(f"{limits.max_total_tokens} tokens")
    if limits.max_cost is not None:
        clauses.append(f"{limits.max_cost:f} USD")
    if limits.force_after is not None:
        clauses.append(f"interrupted {limits.force_after.total_seconds():.12g} s after a limit")
    if limits.include_descendants:
        clauses.append("with its descendants")
    return ", ".join(clauses)
