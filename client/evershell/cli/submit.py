"""The command `submit`."""

import sys
from datetime import timedelta
from decimal import Decimal

import click

from evershell.cli import show
from evershell.cli.completion import complete_workspace
from evershell.cli.exit_codes import TABLE, ExitCode
from evershell.cli.lists import whole_number
from evershell.cli.options import Call, service_options
from evershell.cli.progress import await_task, shown_progress
from evershell.cli.terminal import OutputError, say_lines
from evershell.cli.values import AMOUNT, DURATION
from evershell.client import SubmittedTask, Task, TaskLimits

_HELP = f"""Submit a task to the agent of WORKSPACE.

DESCRIPTION is what to do; - reads it from standard input.

{TABLE}"""


def _metadata(
    context: click.Context, parameter: click.Parameter, pairs: tuple[str, ...]
) -> dict[str, str]:
    for pair in pairs:
        if "=" not in pair:
            raise click.BadParameter(f"{pair!r} is not NAME=VALUE.")
    return dict(pair.split("=", 1) for pair in pairs)


@click.command(help=_HELP)
@click.argument("workspace", shell_complete=complete_workspace)
@click.argument("description")
@click.option(
    "--metadata",
    multiple=True,
    metavar="NAME=VALUE",
    callback=_metadata,
    help="For your own use; can be given several times.",
)
@click.option(
    "--max-iterations",
    type=whole_number(1),
    metavar="N",
    help="The task ends failed after this number of iterations. Default: 100.",
)
@click.option(
    "--max-duration",
    type=DURATION,
    metavar="DURATION",
    help="Cancel the task this long after its start: 10m, 2h; at most 30 d.",
)
@click.option(
    "--max-total-tokens",
    type=whole_number(1),
    metavar="N",
    help="Cancel the task after the iteration in which it reaches this number of tokens.",
)
@click.option(
    "--max-cost",
    type=AMOUNT,
    metavar="USD",
    help="Cancel the task after the iteration in which its cost reaches this amount in USD: 0.50.",
)
@click.option(
    "--force-after",
    type=DURATION,
    metavar="DURATION",
    help="Interrupt an iteration that still runs this long after a limit was reached.",
)
@click.option(
    "--limit-descendants",
    is_flag=True,
    help="The limits count for the task and its descendants together.",
)
@click.option(
    "--parent",
    metavar="ID",
    help="Make the task a child of this task, so that cancel --descendants includes it.",
)
@click.option(
    "--idempotency-key",
    metavar="KEY",
    help="A repeated command with the same key submits nothing and prints the first answer.",
)
@click.option(
    "--wait",
    type=DURATION,
    metavar="DURATION",
    help="Wait for the end of the task, but no longer than this: 10s, 5m, 1h.",
)
@service_options
def submit(
    call: Call,
    workspace: str,
    description: str,
    metadata: dict[str, str],
    max_iterations: int | None,
    max_duration: float | None,
    max_total_tokens: int | None,
    max_cost: Decimal | None,
    force_after: float | None,
    limit_descendants: bool,
    parent: str | None,
    idempotency_key: str | None,
    wait: float | None,
) -> None:
    """Submits the task, and prints its id. With `wait`, also waits for its end and prints it."""
    if description == "-":
        description = _read_standard_input()
    try:
        submitted = call.client.submit_task(
            workspace,
            description,
            metadata=metadata,
            max_iterations=max_iterations,
            limits=_limits(
                max_duration, max_total_tokens, max_cost, force_after, limit_descendants
            ),
            parent_task_id=parent,
            idempotency_key=idempotency_key,
        )
    except KeyboardInterrupt:
        command = f"evershell tasks{call.target.options} {workspace}"
        text = f"Not known. `{command}` lists the task if it was."
        show.command("submitted?", text, error=True)
        raise
    if wait is None:
        _print_submitted(call, submitted)
        return
    if not call.as_json:
        _print_id(call, submitted)
    try:
        with shown_progress(wanted=not call.as_json) as say:
            task = await_task(call.client, workspace, submitted.task_id, wait, say)
    except KeyboardInterrupt:
        if call.as_json:
            show.json_value(submitted.to_dict())
        else:
            _print_follow(call, submitted)
        raise
    if call.as_json:
        show.json_value((task or submitted).to_dict())
    elif task is not None:
        _print_end(task)
    if task is None or not task.has_ended:
        sys.exit(ExitCode.NOT_ENDED)
    sys.exit(show.code_of_end(task.status))


def _read_standard_input() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError:
        raise click.UsageError("Standard input is not valid text.") from None


def _limits(
    max_duration: float | None,
    max_total_tokens: int | None,
    max_cost: Decimal | None,
    force_after: float | None,
    include_descendants: bool,
) -> TaskLimits | None:
    given = (max_duration, max_total_tokens, max_cost, force_after)
    if given == (None,) * 4 and not include_descendants:
        return None
    return TaskLimits(
        max_duration=None if max_duration is None else timedelta(seconds=max_duration),
        max_total_tokens=max_total_tokens,
        max_cost=max_cost,
        force_after=None if force_after is None else timedelta(seconds=force_after),
        include_descendants=include_descendants,
    )


def _print_submitted(call: Call, submitted: SubmittedTask) -> None:
    if call.as_json:
        show.json_value(submitted.to_dict())
        return
    _print_id(call, submitted)
    _print_follow(call, submitted)


def _print_id(call: Call, submitted: SubmittedTask) -> None:
    try:
        say_lines(submitted.task_id)
    except (OSError, OutputError):
        # Standard output has failed, but the user may still see standard error.
        _print_follow(call, submitted)
        raise


def _print_follow(call: Call, submitted: SubmittedTask) -> None:
    workspace, task_id = submitted.workspace_id, submitted.task_id
    show.line("status", submitted.status, error=True)
    follow = f"evershell watch{call.target.options} {workspace} --task {task_id}"
    show.command("follow", follow, error=True)


def _print_end(task: Task) -> None:
    show.said(task.status, show.progress(task), error=True)
    if task.has_ended:
        show.line("ended", f"{show.time(task.completed_at)}, {_took(task)}", error=True)
    if task.end_reason:
        show.line("end reason", task.end_reason, error=True)
    if task.result:
        show.line("result", show.first_line(task.result, 200), error=True)


def _took(task: Task) -> str:
    return f"after {show.took(task, task.created_at)}"
