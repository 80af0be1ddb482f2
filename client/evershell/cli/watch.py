"""The command `watch`."""

import sys
from contextlib import closing

import click

from evershell.cli import show
from evershell.cli.completion import complete_task, complete_workspace
from evershell.cli.exit_codes import TABLE, ExitCode
from evershell.cli.lists import whole_number
from evershell.cli.options import Call, service_options
from evershell.cli.terminal import printable, say_lines, wrapped
from evershell.cli.values import DURATION
from evershell.client import (
    DeadlineExceededError,
    Event,
    EventType,
    IterationCompleted,
    TaskCancelRequested,
    TaskCompleted,
    TaskLimitApproached,
    TaskSubmitted,
    ToolCall,
    WorkspaceFailed,
    WorkspaceStopped,
    WorkStopped,
)

_HELP = f"""Print the events of WORKSPACE, and wait for new ones.

With --task, print the events of that task and end with it. If the connection breaks or the service
restarts, the command connects again and goes on after the last event.

{TABLE}"""
# In a narrow terminal, the indent of all lines of an event except the first.
_INDENT = 6
_COLORS = {
    EventType.ITERATION_COMPLETED: "blue",
    EventType.TASK_CANCEL_REQUESTED: "yellow",
    EventType.TASK_COMPLETED: "green",
    EventType.WORKSPACE_FAILED: "red",
}


@click.command(help=_HELP)
@click.argument("workspace", shell_complete=complete_workspace)
@click.option(
    "--task", metavar="ID", shell_complete=complete_task, help="Only this task, until its end."
)
@click.option(
    "--after",
    type=whole_number(0),
    default=0,
    metavar="SEQ",
    help="Begin after the event at this position. Default: 0, which begins with the first event.",
)
@click.option(
    "--wait",
    type=DURATION,
    metavar="DURATION",
    help="Stop watching after this time: 10s, 5m. Default: watch until Ctrl-C.",
)
@service_options
def watch(call: Call, workspace: str, task: str | None, after: int, wait: float | None) -> None:
    """Prints one line for each event; with --json, one JSON object on each line."""
    if task is not None:
        # Fails if the task does not exist: the stream of such a task would never end.
        call.client.get_task(workspace, task)
    _watch(call, workspace, task, after, wait)


def _watch(call: Call, workspace: str, task: str | None, after: int, wait: float | None) -> None:
    last: Event | None = None
    try:
        watching = call.client.watch(workspace, after=after, task_id=task, timeout=wait)
        with closing(watching) as events:
            for event in events:
                last = event
                if call.as_json:
                    # The JSON is the same as in the REST stream.
                    show.json_line({"event": event.to_dict()})
                else:
                    print_event(event)
    except DeadlineExceededError:
        if wait is None:
            raise
        sys.exit(ExitCode.NOT_ENDED if task else ExitCode.DONE)
    except KeyboardInterrupt:
        if last is not None and not call.as_json:
            say_lines(f"\nGo on with --after {last.seq}.", error=True)
        raise
    if last is not None and isinstance(last.payload, TaskCompleted):
        sys.exit(show.code_of_end(last.payload.status))


def print_event(event: Event) -> None:
    """Prints one line: the event's position in the log, its time, its type and its content."""
    at = "-" if event.time is None else event.time.strftime("%H:%M:%S.%f")[:-3]
    task = event.task_id or ""
    text = f"{event.seq:>5} {at} {event.type:<21} {task:<31} {_describe(event)}".rstrip()
    name = click.style(event.type, fg=_COLORS.get(event.type), bold=True)
    say_lines(wrapped(printable(text), _INDENT).replace(event.type, name, 1))


def _describe(event: Event) -> str:
    match event.payload:
        case TaskSubmitted(description=description, submitted_by=who):
            return f"by {who}: {show.first_line(description)}"
        case WorkspaceStopped(reason=reason) | WorkspaceFailed(reason=reason):
            return reason
        case TaskCancelRequested(cancel=cancel):
            return f"by {cancel.requested_by}" + (f": {cancel.reason}" if cancel.reason else "")
        case IterationCompleted():
            return _describe_iteration(event.payload)
        case TaskLimitApproached(limit=limit, used=used, maximum=maximum):
            return f"{limit}: {used} of {maximum}"
        case TaskCompleted(status=status, forced=forced, iterations=count):
            word = "iteration" if count == 1 else "iterations"
            ended = f"{status}{', forced' if forced else ''} after {count} {word}"
            if event.payload.iteration_lost:
                ended += "; one more was lost"
            if event.payload.work_stopped is WorkStopped.UNKNOWN:
                ended += ", some of its processes may still run"
            reason = event.payload.end_reason
            return f"{ended}: {show.first_line(reason)}" if reason else ended
        case None:
            return ""
        case payload:
            return ", ".join(f"{name} {value}" for name, value in payload.to_dict().items())


def _describe_iteration(payload: IterationCompleted) -> str:
    calls = "; ".join(map(_describe_call, payload.all_tool_calls))
    return f"{payload.number}: {calls or f'model call {payload.model_call.status}'}"


def _describe_call(call: ToolCall) -> str:
    result = call.result
    ended = f"{result.status} {result.exit_code}" if result.status == "exited" else result.status
    return f"{call.name} {ended}, {call.duration_ms} ms"
