"""The command `demo`: cancels a task, prints its events, and checks each promise.

The demo uses the running stack, or starts its own.
"""

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NoReturn, TypeVar

import click

from evershell.cli.terminal import printable
from evershell.cli.watch import print_event
from evershell.client import (
    CancelOutcome,
    CancelResult,
    Client,
    Event,
    EvershellError,
    IterationCompleted,
    TaskCompleted,
    TaskPhase,
    TaskStarted,
    TaskStatus,
    WorkspaceStatus,
)
from evershell.commands.environment import read_ready, read_settings

P = TypeVar("P")
T = TypeVar("T")

_LINES = ("sleep 1",) * 6
_NEXT_LINES = ("echo still here", "echo and ready for the next")
_REASON = "the demo has seen enough"
# How long to wait until the stack is ready: longer than the stack itself waits before it gives up,
# which is 180 s by default.
_READY_SECONDS = 200.0


@dataclass(frozen=True, slots=True)
class DemoStack:
    """A running stack and its demo workspace."""

    client: Client
    workspace_id: str


@dataclass(slots=True)
class FollowedTask:
    """A task, its events so far, and when each was received, in seconds since 1970."""

    task_id: str
    lines: tuple[str, ...]
    events: list[tuple[Event, float]] = field(default_factory=list)

    def of(self, kind: type[P]) -> list[P]:
        """The payloads of this kind, in order."""
        return [event.payload for event, _ in self.events if isinstance(event.payload, kind)]

    def committed_at(self, kind: type[Any]) -> list[float]:
        """When the events of this kind were committed, in seconds since 1970."""
        return [
            event.time.timestamp()
            for event, _ in self.events
            if isinstance(event.payload, kind) and event.time is not None
        ]


@click.command(
    help="Show a cancellation and check each promise, on the running stack or on its own stack."
)
def demo() -> None:
    """Fails if a promise is not kept."""
    state_dir = read_settings().state_dir
    try:
        stack = _find_stack(state_dir)
        if stack is not None:
            _demonstrate(stack)
            return
        with _own_stack(state_dir) as own:
            _demonstrate(own)
    except (EvershellError, OSError) as error:
        raise click.ClickException(f"The stack did not answer as expected: {error}") from error


def _demonstrate(stack: DemoStack) -> None:
    with stack.client as client:
        workspace = client.get_workspace(stack.workspace_id)
        if workspace.status not in (WorkspaceStatus.IDLE, WorkspaceStatus.SUSPENDED):
            _fail(
                f"the demo workspace {workspace.id} is {workspace.status}; the demo needs it idle"
            )
        _title("A task of six iterations, a second each, is cancelled in the second one")
        first = _submit(client, workspace.id, _LINES)
        result, answered_at = _follow_and_cancel(client, workspace.id, first)
        _check_cancelled(first, result)
        _print_timing(first, answered_at)
        _title("The next task, for the same agent")
        second = _submit(client, workspace.id, _NEXT_LINES)
        for _ in _follow(client, workspace.id, second, after=first.events[-1][0].seq):
            pass
        _check_next(first, second)
    _title("All promises were kept.")


def _submit(client: Client, workspace_id: str, lines: tuple[str, ...]) -> FollowedTask:
    return FollowedTask(client.submit_task(workspace_id, "\n".join(lines)).task_id, lines)


def _follow(
    client: Client, workspace_id: str, task: FollowedTask, after: int = 0
) -> Iterator[Event]:
    """Prints and yields the events of the task until its end."""
    for event in client.watch(workspace_id, after=after, task_id=task.task_id, timeout=60.0):
        task.events.append((event, time.time()))
        print_event(event)
        yield event


def _follow_and_cancel(
    client: Client, workspace_id: str, task: FollowedTask
) -> tuple[CancelResult, float]:
    """Returns the answer to the cancellation, and the time when it was received."""
    result: CancelResult | None = None
    answered_at = 0.0
    for event in _follow(client, workspace_id, task):
        if result is None and isinstance(event.payload, IterationCompleted):
            # Cancels during an iteration, so that the agent has an iteration to finish.
            _await_tool_call(client, workspace_id, task.task_id)
            result = client.cancel(workspace_id, task.task_id, reason=_REASON)
            answered_at = time.time()
            _print_answer(result)
    if result is None:
        _fail("the task ended before its first iteration")
    return result, answered_at


def _await_tool_call(client: Client, workspace_id: str, task_id: str) -> None:
    _eventually(
        lambda: client.get_task(workspace_id, task_id).phase is TaskPhase.TOOL_CALL,
        10.0,
        "no further iteration started",
    )


def _check_cancelled(task: FollowedTask, result: CancelResult) -> None:
    accepted = result.outcome is CancelOutcome.ACCEPTED
    _promise("the call was accepted", accepted, result.outcome)
    iterations = task.of(IterationCompleted)
    before = result.task.iterations if result.task else 0
    numbers = [each.number for each in iterations]
    _promise(
        "the current iteration was finished, and no other was started",
        numbers == [*range(1, before + 2)],
        numbers,
    )
    tool = iterations[-1].tool_call
    finished = tool is not None and (tool.result.status, tool.result.exit_code) == ("exited", 0)
    _promise("it was not interrupted", finished, tool)
    ends = task.of(TaskCompleted)
    actual = [(end.status, end.forced, end.iterations, end.end_reason) for end in ends]
    expected = [(TaskStatus.CANCELLED, False, before + 1, _REASON)]
    _promise("one task_completed says cancelled, not forced", actual == expected, actual)


def _check_next(first: FollowedTask, second: FollowedTask) -> None:
    (end,) = second.of(TaskCompleted)
    _promise(
        "the next task completed",
        (end.status, end.iterations) == (TaskStatus.COMPLETED, len(second.lines)),
        f"{end.status}, {end.iterations}",
    )
    epochs = [task.of(TaskStarted)[0].epoch for task in (first, second)]
    _promise(f"by the same agent, in epoch {epochs[1]}", epochs[0] == epochs[1], epochs)


def _print_timing(task: FollowedTask, answered_at: float) -> None:
    """Prints the time until the end, and how much of it the current iteration took.

    The last iteration started when the previous one was committed. The demo runs on the machine of
    the stack, so all times are from one clock.
    """
    last = task.of(IterationCompleted)[-1]
    previous_at = task.committed_at(IterationCompleted)[-2]
    total_ms = (task.events[-1][1] - answered_at) * 1000
    took_ms = last.model_call.duration_ms + (last.tool_call.duration_ms if last.tool_call else 0)
    iteration_ms = min(max((previous_at - answered_at) * 1000 + took_ms, 0.0), total_ms)
    total = _bold(f"{total_ms:.0f} ms", "cyan")
    click.echo(
        f"           {total} from the signal to the end: {iteration_ms:.0f} ms for the rest of the "
        f"iteration, {total_ms - iteration_ms:.0f} ms for everything else"
    )


def _print_answer(result: CancelResult) -> None:
    call = click.style("client.cancel(…)", bold=True)
    outcome = _bold(result.outcome, "yellow")
    task = result.task
    state = f"task {task.status}, {task.iterations} iteration(s) completed" if task else ""
    click.echo(f"           {call} → {outcome} ({printable(state)})")


def _promise(promise: str, kept: bool, actual: Any) -> None:
    """Prints that the promise was kept. Raises click.ClickException if it was not."""
    if not kept:
        _fail(f"a promise was not kept: {promise}. Actual: {actual}")
    click.echo(f"           {_bold('✓', 'green')} {printable(promise)}")


def _title(text: str) -> None:
    click.echo(f"\n{click.style(text, bold=True)}")


def _bold(text: str, color: str) -> str:
    return click.style(printable(text), fg=color, bold=True)


def _find_stack(state_dir: Path) -> DemoStack | None:
    """The running stack; None if none answers. A killed stack may have left its ready.json."""
    ready = read_ready(state_dir)
    if ready is None:
        return None
    client = Client(ready.grpc_url, ready.demo.tokens["full_access"], ca_file=ready.tls_cert_file)
    stack = DemoStack(client, ready.demo.workspace_id)
    try:
        client.with_options(max_retries=0).get_workspace(stack.workspace_id)
    except EvershellError:
        client.close()
        return None
    return stack


@contextmanager
def _own_stack(state_dir: Path) -> Iterator[DemoStack]:
    """Starts a stack, and stops it at the end of the context."""
    click.echo("No stack runs. Starting one that ends with the demo …")
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        with tempfile.TemporaryFile("w+") as output:
            # The stack gets its own session, so that Ctrl-C reaches only the demo, which then stops
            # the stack.
            command = [sys.executable, "-m", "evershell.commands", "up"]
            process = subprocess.Popen(
                command, stdout=output, stderr=output, start_new_session=True
            )
            try:
                yield _await_ready(state_dir, process, output)
            finally:
                click.echo("Stopping the stack.")
                process.terminate()
                process.wait()
    finally:
        signal.signal(signal.SIGTERM, before)


def _await_ready(state_dir: Path, process: "subprocess.Popen[bytes]", output: IO[str]) -> DemoStack:
    def probe() -> DemoStack | bool | None:
        return process.poll() is not None or _find_stack(state_dir)

    result = _eventually(probe, _READY_SECONDS, "the stack did not get ready")
    if isinstance(result, DemoStack):
        return result
    output.seek(0)
    lines = output.read().strip().splitlines()
    reason = lines[-1].removeprefix("Error: ") if lines else ""
    raise click.ClickException(f"The stack did not start. {reason}")


def _fail(message: str) -> NoReturn:
    """Ends the demo with this message. Raises click.ClickException."""
    raise click.ClickException(message[0].upper() + message[1:])


def _eventually(probe: Callable[[], T], timeout_seconds: float, message: str) -> T:
    """Calls `probe` until its result is true, and returns the result.

    Raises click.ClickException after the timeout.
    """
    until = time.monotonic() + timeout_seconds
    while not (result := probe()):
        if time.monotonic() >= until:
            _fail(f"{message} within {timeout_seconds:.0f} s")
        time.sleep(0.02)
    return result
