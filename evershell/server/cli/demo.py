"""The command `demo`: cancels a task over REST, prints its events, and checks each promise."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import click
import httpx

from evershell.cli.terminal import printable
from evershell.server.cli.demo_stack import Api, eventually, fail, find_stack, own_stack
from evershell.server.cli.environment import read_settings

_LINES = ("sleep 1",) * 6
_NEXT_LINES = ("echo still here", "echo and ready for the next")
_REASON = "the demo has seen enough"
_PHASE_SECONDS = 10.0
_COLORS = {
    "iteration_completed": "blue",
    "task_cancel_requested": "yellow",
    "task_completed": "green",
}


@dataclass(slots=True)
class ReceivedEvent:
    """An event of the task, and the time when it was received."""

    event: dict[str, Any]
    # Seconds since the epoch.
    at: float

    @property
    def type(self) -> str:
        """The type, for example `task_started`."""
        return str(self.event["type"])

    @property
    def committed_at(self) -> float:
        """The time of the commit, in seconds since the epoch."""
        return datetime.fromisoformat(self.event["time"]).timestamp()

    @property
    def payload(self) -> dict[str, Any]:
        """The fields that are specific to the type."""
        payload: dict[str, Any] = self.event[self.type]
        return payload


@dataclass(slots=True)
class FollowedTask:
    """A task and the events that were received so far."""

    task_id: str
    lines: tuple[str, ...]
    events: list[ReceivedEvent] = field(default_factory=list)

    def of(self, type_: str) -> list[ReceivedEvent]:
        """The events of this type, in order."""
        return [each for each in self.events if each.type == type_]


@click.command(
    help="Show a cancellation and check each promise, on the running stack or one of its own."
)
def demo() -> None:
    """Fails if a promise is not kept."""
    state_dir = read_settings().state_dir
    try:
        api = find_stack(state_dir)
        if api is not None:
            _demonstrate(api)
            return
        with own_stack(state_dir) as own:
            _demonstrate(own)
    except (httpx.HTTPError, OSError, ValueError) as error:
        raise click.ClickException(f"The stack did not answer as expected: {error}.") from error


def _demonstrate(api: Api) -> None:
    workspace = api.call("GET")
    if workspace["status"] != "idle":
        fail(
            f"the demo workspace {api.workspace_id} is {workspace['status']}; "
            "the demo needs it idle"
        )
    _title("A task of six iterations, a second each, is cancelled in the second one")
    first = _submit(api, _LINES)
    answer, answered_at = _follow_and_cancel(api, first)
    _check_cancelled(first, answer)
    _print_timing(first, answered_at)
    _title("The next task, for the same agent")
    second = _submit(api, _NEXT_LINES)
    for _ in _follow(api, second, after=int(first.events[-1].event["seq"])):
        pass
    _check_next(first, second)
    _title("All promises were kept.")


def _submit(api: Api, lines: tuple[str, ...]) -> FollowedTask:
    submitted = api.call("POST", "/tasks", {"description": "\n".join(lines)})
    return FollowedTask(submitted["task_id"], lines)


def _follow(api: Api, task: FollowedTask, after: int = 0) -> Iterator[ReceivedEvent]:
    """Prints and yields the events of the task until its end."""
    for event in api.events(after):
        if event["task_id"] != task.task_id:
            continue
        received = ReceivedEvent(event, time.time())
        task.events.append(received)
        _print_event(task, received)
        yield received
        if received.type == "task_completed":
            return
    fail(f"the event stream ended before task {task.task_id} did")


def _follow_and_cancel(api: Api, task: FollowedTask) -> tuple[dict[str, Any], float]:
    """Returns the answer to the cancellation, and the time when it was received."""
    answer: dict[str, Any] | None = None
    answered_at = 0.0
    for received in _follow(api, task):
        if answer is None and received.type == "iteration_completed":
            # Cancels during an iteration, so that the agent has one to finish.
            _await_tool_call(api, task.task_id)
            answer = api.call("POST", "/task/cancel", {"task_id": task.task_id, "reason": _REASON})
            answered_at = time.time()
            _print_answer(answer)
    if answer is None:
        fail("the task ended before its first iteration")
    return answer, answered_at


def _await_tool_call(api: Api, task_id: str) -> None:
    def is_in_tool_call() -> bool:
        return bool(api.call("GET", f"/tasks/{task_id}")["phase"] == "tool_call")

    eventually(is_in_tool_call, _PHASE_SECONDS, "no further iteration started")


def _check_cancelled(task: FollowedTask, answer: dict[str, Any]) -> None:
    _promise("the call was accepted", answer["outcome"] == "accepted", answer["outcome"])
    iterations, before = task.of("iteration_completed"), answer["task"]["iterations"]
    numbers = [each.payload["number"] for each in iterations]
    _promise(
        "the current iteration was finished, and no other was started",
        numbers == [*range(1, before + 2)],
        numbers,
    )
    result = iterations[-1].payload["tool_call"]["result"]
    _promise(
        "it was not interrupted", (result["status"], result["exit_code"]) == ("exited", 0), result
    )
    ends = task.of("task_completed")
    end = ends[-1].payload
    actual = {name: end[name] for name in ("status", "forced", "iterations", "reason")}
    expected = {"status": "cancelled", "forced": False, "iterations": before + 1, "reason": _REASON}
    _promise(
        "one task_completed says cancelled, not forced",
        len(ends) == 1 and actual == expected,
        actual,
    )


def _check_next(first: FollowedTask, second: FollowedTask) -> None:
    status, iterations = (second.events[-1].payload[name] for name in ("status", "iterations"))
    _promise(
        "the next task completed",
        (status, iterations) == ("completed", len(second.lines)),
        f"{status}, {iterations}",
    )
    epochs = [task.of("task_started")[0].payload["epoch"] for task in (first, second)]
    _promise(f"by the same agent, in epoch {epochs[1]}", epochs[0] == epochs[1], epochs)


def _print_timing(task: FollowedTask, answered_at: float) -> None:
    """Prints how long the end took, and how much of that the current iteration needed.

    The last iteration started when the previous one was committed. The demo runs on the machine of
    the stack, so all times are from one clock.
    """
    *_, previous, last = task.of("iteration_completed")
    total_ms = (task.events[-1].at - answered_at) * 1000
    took_ms = sum(int(last.payload[call]["duration_ms"]) for call in ("model_call", "tool_call"))
    iteration_ms = min(max((previous.committed_at - answered_at) * 1000 + took_ms, 0.0), total_ms)
    total = _bold(f"{total_ms:.0f} ms", "cyan")
    click.echo(
        f"           {total} from the signal to the end: {iteration_ms:.0f} ms for the rest of the "
        f"iteration, {total_ms - iteration_ms:.0f} ms for all else"
    )


def _print_answer(answer: dict[str, Any]) -> None:
    call = click.style("POST …/task/cancel", bold=True)
    outcome = _bold(answer["outcome"], "yellow")
    task = answer["task"]
    state = f"task {task['status']}, {task['iterations']} iteration(s) completed"
    click.echo(f"           {call} → {outcome} ({printable(state)})")


def _print_event(task: FollowedTask, received: ReceivedEvent) -> None:
    elapsed = received.at - task.events[0].at
    name = click.style(f"{printable(received.type):<22}", fg=_COLORS.get(received.type))
    click.echo(f"  {elapsed:6.2f} s {name} {printable(_describe(task, received))}")


def _describe(task: FollowedTask, received: ReceivedEvent) -> str:
    payload = received.payload
    if received.type == "task_submitted":
        return task.task_id
    if received.type == "task_started":
        return f"epoch {payload['epoch']}"
    if received.type == "iteration_completed":
        tool, number, total = payload["tool_call"], payload["number"], len(task.lines)
        bar = "█" * number + "░" * (total - number)
        ended = (
            f"{tool['result']['status']} {tool['result']['exit_code']}, {tool['duration_ms']} ms"
        )
        return f"{bar} iteration {number} of {total}: {task.lines[number - 1]} ({ended})"
    if received.type == "task_cancel_requested":
        return f"by {payload['cancel']['requested_by']}: {payload['cancel']['reason']}"
    forced = "forced" if payload["forced"] else "not forced"
    return f"{payload['status']}, {forced}, {payload['iterations']} iterations"


def _promise(promise: str, kept: bool, actual: Any) -> None:
    """Prints that the promise was kept. Raises click.ClickException if it was not."""
    if not kept:
        fail(f"a promise was not kept: {promise}. Actual: {actual}")
    click.echo(f"           {_bold('✓', 'green')} {printable(promise)}")


def _title(text: str) -> None:
    click.echo(f"\n{click.style(text, bold=True)}")


def _bold(text: str, color: str) -> str:
    return click.style(printable(text), fg=color, bold=True)
