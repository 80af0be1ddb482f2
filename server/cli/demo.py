"""The command `demo`: cancels a task over REST, prints what happens, and checks each promise."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import click
import httpx

from server.cli.demo_stack import Api, eventually, fail, find_stack, own_stack
from server.cli.environment import read_settings
from server.terminal import printable

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
class Seen:
    """An event of the task, and when it arrived."""

    event: dict[str, Any]
    at: float

    @property
    def type(self) -> str:
        """The type of the event."""
        return str(self.event["type"])

    @property
    def committed_at(self) -> float:
        """When the service committed it."""
        return datetime.fromisoformat(self.event["time"]).timestamp()

    @property
    def payload(self) -> dict[str, Any]:
        """The payload of its type."""
        payload: dict[str, Any] = self.event[self.type]
        return payload


@dataclass(slots=True)
class Walk:
    """A task and its events so far."""

    task_id: str
    lines: tuple[str, ...]
    seen: list[Seen] = field(default_factory=list)

    def of(self, type_: str) -> list[Seen]:
        """The events of this type, in order."""
        return [each for each in self.seen if each.type == type_]


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
        raise click.ClickException(f"The stack does not answer as it should: {error}.") from error


def _demonstrate(api: Api) -> None:
    workspace = api.call("GET")
    if workspace["status"] != "idle":
        fail(
            f"the demo workspace {api.workspace_id} is {workspace['status']}; the demo needs it idle"
        )
    _title("A task of six iterations, a second each; it is cancelled in the second one")
    first = _submit(api, _LINES)
    answer, answered_at = _follow_and_cancel(api, first)
    _check_cancelled(first, answer)
    _print_timing(first, answered_at)
    _title("The next task, for the same agent")
    second = _submit(api, _NEXT_LINES)
    for _ in _follow(api, second, after=int(first.seen[-1].event["seq"])):
        pass
    _check_next(first, second)
    _title("All promises were kept.")


def _submit(api: Api, lines: tuple[str, ...]) -> Walk:
    submitted = api.call("POST", "/tasks", {"description": "\n".join(lines)})
    return Walk(submitted["task_id"], lines)


def _follow(api: Api, walk: Walk, after: int = 0) -> Iterator[Seen]:
    """Prints and yields the task's events until its end."""
    for event in api.events(after):
        if event["task_id"] != walk.task_id:
            continue
        seen = Seen(event, time.time())
        walk.seen.append(seen)
        _print_event(walk, seen)
        yield seen
        if seen.type == "task_completed":
            return
    fail(f"the event stream ended before task {walk.task_id} did")


def _follow_and_cancel(api: Api, walk: Walk) -> tuple[dict[str, Any], float]:
    """Returns the answer to the cancellation, and when it arrived."""
    answer: dict[str, Any] | None = None
    answered_at = 0.0
    for seen in _follow(api, walk):
        if answer is None and seen.type == "iteration_completed":
            # Cancels during an iteration, so that the agent has one to finish.
            _await_tool_call(api, walk.task_id)
            answer = api.call("POST", "/task/cancel", {"task_id": walk.task_id, "reason": _REASON})
            answered_at = time.time()
            said = f"task {answer['task']['status']}, {answer['task']['iterations']} iteration(s) completed"
            call, outcome = (
                click.style("POST …/task/cancel", bold=True),
                _bold(answer["outcome"], "yellow"),
            )
            click.echo(f"           {call} → {outcome} ({printable(said)})")
    if answer is None:
        fail("the task ended before its first iteration")
    return answer, answered_at


def _await_tool_call(api: Api, task_id: str) -> None:
    def begun() -> bool:
        return bool(api.call("GET", f"/tasks/{task_id}")["phase"] == "tool_call")

    eventually(begun, _PHASE_SECONDS, "no further iteration began")


def _check_cancelled(walk: Walk, answer: dict[str, Any]) -> None:
    _promise("the call was accepted", answer["outcome"] == "accepted", answer["outcome"])
    iterations, before = walk.of("iteration_completed"), answer["task"]["iterations"]
    numbers = [each.payload["number"] for each in iterations]
    _promise(
        "exactly the current iteration was finished, and no other begun",
        numbers == [*range(1, before + 2)],
        numbers,
    )
    result = iterations[-1].payload["tool_call"]["result"]
    _promise(
        "it was not broken off", (result["status"], result["exit_code"]) == ("exited", 0), result
    )
    ends = walk.of("task_completed")
    end = ends[-1].payload
    actual = {name: end[name] for name in ("status", "forced", "iterations", "reason")}
    expected = {"status": "cancelled", "forced": False, "iterations": before + 1, "reason": _REASON}
    _promise(
        "one task_completed says cancelled, not forced",
        len(ends) == 1 and actual == expected,
        actual,
    )


def _check_next(first: Walk, second: Walk) -> None:
    status, iterations = (second.seen[-1].payload[name] for name in ("status", "iterations"))
    _promise(
        "the next task completed",
        (status, iterations) == ("completed", len(second.lines)),
        f"{status}, {iterations}",
    )
    epochs = [walk.of("task_started")[0].payload["epoch"] for walk in (first, second)]
    _promise(f"by the same agent, in epoch {epochs[1]}", epochs[0] == epochs[1], epochs)


def _print_timing(walk: Walk, answered_at: float) -> None:
    """Prints how long the end took, and how much of that the current iteration needed.

    The last iteration started when the previous one was committed. All times are of one clock.
    """
    *_, previous, last = walk.of("iteration_completed")
    total_ms = (walk.seen[-1].at - answered_at) * 1000
    took_ms = sum(int(last.payload[call]["duration_ms"]) for call in ("model_call", "tool_call"))
    natural_ms = min(max((previous.committed_at - answered_at) * 1000 + took_ms, 0.0), total_ms)
    click.echo(
        f"           {_bold(f'{total_ms:.0f} ms', 'cyan')} from the signal to the end: {natural_ms:.0f} ms until the iteration "
        f"had ended by itself, {total_ms - natural_ms:.0f} ms for all else"
    )


def _print_event(walk: Walk, seen: Seen) -> None:
    elapsed = seen.at - walk.seen[0].at
    name = click.style(f"{printable(seen.type):<22}", fg=_COLORS.get(seen.type))
    click.echo(f"  {elapsed:6.2f} s {name} {printable(_describe(walk, seen))}")


def _describe(walk: Walk, seen: Seen) -> str:
    payload = seen.payload
    if seen.type == "task_submitted":
        return walk.task_id
    if seen.type == "task_started":
        return f"epoch {payload['epoch']}"
    if seen.type == "iteration_completed":
        tool, number = payload["tool_call"], payload["number"]
        progress = "█" * number + "░" * (len(walk.lines) - number)
        ended = (
            f"{tool['result']['status']} {tool['result']['exit_code']}, {tool['duration_ms']} ms"
        )
        return f"{progress} iteration {number} of {len(walk.lines)}: {walk.lines[number - 1]} ({ended})"
    if seen.type == "task_cancel_requested":
        return f"by {payload['cancel']['requested_by']}: {payload['cancel']['reason']}"
    return f"{payload['status']}, {'forced' if payload['forced'] else 'not forced'}, {payload['iterations']} iterations"


def _promise(what: str, kept: bool, got: Any) -> None:
    if not kept:
        fail(f"not as promised: {what}. Seen: {got}")
    click.echo(f"           {_bold('✓', 'green')} {printable(what)}")


def _title(text: str) -> None:
    click.echo(f"\n{click.style(text, bold=True)}")


def _bold(text: str, color: str) -> str:
    return click.style(printable(text), fg=color, bold=True)
