"""The command `cancel`."""

import sys

import click

from evershell.cli import show
from evershell.cli.cancel_tasks import FILTER_HELP, cancel_tasks, parse_filter
from evershell.cli.completion import complete_task, complete_workspace
from evershell.cli.exit_codes import TABLE, ExitCode
from evershell.cli.options import Call, service_options
from evershell.cli.progress import await_cancellation, shown_progress
from evershell.cli.values import DURATION
from evershell.client import (
    AgentUnreachableError,
    CallError,
    CancelOutcome,
    CancelResult,
    DeadlineExceededError,
    Task,
    TaskFilter,
    UnavailableError,
)

_HELP = f"""Cancel the task that runs in WORKSPACE. Its agent finishes the current iteration and
starts no other.

With --filter, cancel every task of your organization that matches all filters; with --all, every
task. The command asks for the number of tasks first.

{TABLE}"""

_NOT_KNOWN = (
    "Not known. With --task it is safe to repeat the call. Without it, check first which task runs."
)


@click.command(help=_HELP)
@click.argument("workspace", required=False, shell_complete=complete_workspace)
@click.option("--all", "everything", is_flag=True, help="Cancel every task.")
@click.option(
    "--filter",
    "wanted",
    multiple=True,
    metavar="NAME=VALUE",
    callback=parse_filter,
    help=FILTER_HELP,
)
@click.option(
    "--dry-run", is_flag=True, help="With --all or --filter: show the tasks and cancel none."
)
@click.option(
    "--yes", is_flag=True, help="With --all or --filter: do not ask for the number of tasks."
)
@click.option(
    "--task",
    metavar="ID",
    shell_complete=complete_task,
    help="Cancel only this task.",
)
@click.option(
    "--descendants",
    is_flag=True,
    help="Also cancel every descendant of the task that has not ended.",
)
@click.option(
    "--reason",
    default="",
    metavar="TEXT",
    help="Recorded with the task and its events; at most 500 characters.",
)
@click.option(
    "--wait",
    type=DURATION,
    metavar="DURATION",
    help="Wait for the end of the task, but no longer than this: 500ms, 10s, 5m.",
)
@click.option(
    "--force-after",
    type=DURATION,
    metavar="DURATION",
    help="Interrupt the iteration if it still runs after this time: 0s, 30s; at most 24 h.",
)
@service_options
def cancel(
    call: Call,
    workspace: str | None,
    everything: bool,
    wanted: TaskFilter | None,
    dry_run: bool,
    yes: bool,
    task: str | None,
    descendants: bool,
    reason: str,
    wait: float | None,
    force_after: float | None,
) -> None:
    """Cancels a task or many tasks, prints the result, and exits with an ExitCode."""
    if everything and wanted is not None:
        raise click.UsageError("--all and --filter exclude each other.")
    if everything or wanted is not None:
        # Compares with None, so that the empty text from an unset shell variable is refused, too.
        if descendants or any(each is not None for each in (workspace, task, wait)):
            raise click.UsageError(
                "--all and --filter take no WORKSPACE, --task, --descendants or --wait."
            )
        cancel_tasks(call, wanted, reason, force_after, dry_run=dry_run, yes=yes)
    if dry_run or yes:
        raise click.UsageError("--dry-run and --yes need --all or --filter.")
    if not workspace:
        raise click.UsageError("Missing argument 'WORKSPACE'. --all cancels every task.")
    try:
        result = call.client.cancel(
            workspace,
            task,
            reason=reason,
            force_after=force_after,
            include_descendants=descendants,
        )
    except KeyboardInterrupt:
        show.line("recorded?", _NOT_KNOWN, error=True)
        raise
    except CallError as error:
        if call.as_json:
            raise
        with show.reported():
            show.print_error(error, call.target.url)
            _print_what_is_recorded(error, workspace, call)
        sys.exit(show.code_of_error(error))
    with show.reported():
        if not call.as_json:
            _print_answer(result)
            if descendants:
                show.line("descendants", f"{result.descendants_cancelled} cancelled by this call")
    if wait is not None and not result.is_over:
        result = _wait(call, result, wait)
    with show.reported():
        if call.as_json:
            show.json_value(result.to_dict())
        elif not result.is_over:
            show.command("follow", _follow(call, workspace, result.task_id))
    sys.exit(_code(result, has_waited=wait is not None))


def _wait(call: Call, result: CancelResult, wait_seconds: float) -> CancelResult:
    try:
        with shown_progress(wanted=not call.as_json) as say:
            result = await_cancellation(call.client, result, wait_seconds, say)
    except CallError as error:
        # The cancellation is recorded, although the command cannot see the end of the task.
        with show.reported():
            show.print_error(error, call.target.url)
        return result
    except KeyboardInterrupt:
        with show.reported():
            if call.as_json:
                show.json_value(result.to_dict())
            text = f"The cancellation of task {result.task_id} stands. Only the wait was ended."
            show.said("interrupted", text, error=True)
            follow = _follow(call, result.workspace_id, result.task_id)
            show.command("follow", follow, error=True)
        raise
    with show.reported():
        if not call.as_json:
            _print_wait(result, wait_seconds)
    return result


def _code(result: CancelResult, *, has_waited: bool) -> ExitCode:
    if not (result.is_recorded or result.descendants_cancelled):
        return ExitCode.NOTHING_TO_CANCEL
    return ExitCode.NOT_ENDED if has_waited and not result.is_over else ExitCode.DONE


def _print_answer(result: CancelResult) -> None:
    if result.outcome is CancelOutcome.NO_ACTIVE_TASK or result.task is None:
        show.said(
            result.outcome,
            f"nothing runs in workspace {result.workspace_id}, so there is nothing to cancel.",
        )
        return
    task = result.task
    if not result.is_recorded:
        at = show.time(task.completed_at)
        show.said(result.outcome, f"task {result.task_id} had ended {task.status} at {at}.")
        if task.end_reason:
            show.line("end reason", task.end_reason)
        return
    recorded = (
        "is recorded" if result.outcome is CancelOutcome.ACCEPTED else "had been recorded before"
    )
    show.said(
        result.outcome,
        f"the cancellation of task {result.task_id} in workspace {result.workspace_id} {recorded}.",
    )
    show.line("requested", f"{show.time(result.requested_at)} by {result.requested_by}")
    if result.reason:
        show.line("cancel reason", result.reason)
    show.line("task", f"{task.status}, {show.progress(task)}")
    if result.request_id:
        show.line("request", result.request_id)
    if task.has_ended:
        _print_end(task, result)
        return
    show.line(
        "next",
        "The agent finishes its current iteration and starts no other; the task then ends "
        "cancelled.",
    )
    if task.cancel_force_at is not None:
        at = show.time(task.cancel_force_at)
        show.line("force", f"An iteration that still runs at {at} is interrupted.")


def _print_wait(result: CancelResult, wait_seconds: float) -> None:
    task = result.task
    if task is not None and task.has_ended:
        _print_end(task, result)
        return
    state = "" if task is None else f" ({task.status}, {show.progress(task)})"
    show.line("waited", f"{wait_seconds:g} s; the task has not ended yet{state}.")


def _print_end(task: Task, result: CancelResult) -> None:
    forced = ", forced" if task.forced else ""
    lost = "; one more iteration was lost" if task.iteration_lost else ""
    took = show.took(task, result.requested_at)
    show.line(
        "ended",
        f"{task.status} at {show.time(task.completed_at)}, {took} after the request{forced}, "
        f"{show.progress(task)}{lost}. The workspace can take its next task.",
    )


def _print_what_is_recorded(error: CallError, workspace: str, call: Call) -> None:
    if isinstance(error, AgentUnreachableError) and error.task_id:
        show.command("follow", _follow(call, workspace, error.task_id), error=True)
    elif error.code == "rate_limited":
        show.line("recorded?", "No. This call has changed nothing.", error=True)
    elif isinstance(error, UnavailableError | DeadlineExceededError):
        show.line("recorded?", _NOT_KNOWN, error=True)


def _follow(call: Call, workspace: str, task_id: str | None) -> str:
    """The command line that follows the task. It does not show the credential."""
    return f"evershell watch{call.target.options} {workspace} --task {task_id}"
