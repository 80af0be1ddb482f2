"""What an agent may send.

Tools run next to an agent, and a model chooses what they do, so an agent may be taken over. A
message that breaks a rule has no effect. The workspace records the breach
(`Workspace.agent_breach`) and refuses everything else that the agent sends. The fleet controller
then ends the pod and the task. The breach is the reason for the end of the task.
"""

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any

from evershell.core.addresses import is_host, is_loopback
from evershell.core.task import (
    MAX_CALL_TOKENS,
    MAX_TOOL_CALLS,
    TOKENS,
    AgentEvent,
    IterationCompleted,
    IterationReported,
    Task,
    TaskStatus,
)

# The maximum number of events in one commit. Reports of a running iteration do not count.
MAX_EVENTS = 64
# How many bytes a task may commit: TASK_BYTES, plus ITERATION_BYTES for each iteration that its
# `max_iterations` allows.
TASK_BYTES = 4 * 2**20
ITERATION_BYTES = 256 * 2**10
# The maximum size of the report of a running iteration. It is small, because every read of the task
# includes the report.
OPEN_ITERATION_BYTES = 64 * 2**10
# How fast a worker reads the calls of one agent. An agent that sends faster waits.
BYTES_PER_SECOND = 4 * 2**20
# How many calls of one agent may wait at a worker. Further calls are refused.
MAX_WAITING_CALLS = 16

_MAX_PORT = 65_535
# The largest valid `duration_ms`, and the largest valid `truncated_bytes`.
_MAX_COUNT = 2**53


class BreachError(Exception):
    """An agent broke a rule. The text is a clause that begins with "its agent"."""


def check_address(address: str, *, on_loopback: bool, elsewhere: bool) -> None:
    """Checks that an agent may listen at this address. Raises BreachError.

    `on_loopback` permits loopback addresses, for agents on the workers' machine. `elsewhere`
    permits other addresses, for agents on other machines.
    """
    host, _, port = address.rpartition(":")
    try:
        ip = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        ip = None
    is_pod = ip is not None and (on_loopback if is_loopback(ip) else elsewhere and is_host(ip))
    has_port = port.isascii() and port.isdecimal() and 1 <= int(port[:6]) <= _MAX_PORT
    if not (is_pod and has_port):
        raise BreachError("its agent registered an address that does not belong to a pod")


def check_events(events: Sequence[AgentEvent]) -> None:
    """Checks the rules that do not depend on the state of the task. Raises BreachError."""
    if sum(not isinstance(event, IterationReported) for event in events) > MAX_EVENTS:
        raise BreachError(f"its agent committed more than {MAX_EVENTS} events at once")
    for event in events:
        if isinstance(event, IterationCompleted):
            _check_iteration(event)
        elif isinstance(event, IterationReported):
            _check_report(event)


def check_next(task: Task, iteration: IterationCompleted | IterationReported) -> None:
    """Checks an iteration that directly follows the committed ones. Raises BreachError."""
    if task.status is not TaskStatus.RUNNING:
        raise BreachError("its agent committed an iteration before the start of the task")
    if iteration.number > task.max_iterations:
        raise BreachError(
            f"its agent went beyond the task's limit of {task.max_iterations} iterations"
        )
    limit = TASK_BYTES + ITERATION_BYTES * task.max_iterations
    if task.committed_bytes + iteration.size_bytes > limit:
        raise BreachError(
            f"its agent committed more than the {limit:,} bytes that a task with at most "
            f"{task.max_iterations} iterations may have"
        )


def _check_iteration(iteration: IterationCompleted) -> None:
    if iteration.number < 1:
        raise BreachError("its agent committed an iteration with a number below 1")
    tool_calls = iteration.tool_calls
    _check_model_call(iteration.payload.get("model_call"))
    if len(tool_calls) > MAX_TOOL_CALLS:
        raise BreachError(
            f"its agent committed more than {MAX_TOOL_CALLS} tool calls in one iteration"
        )
    # Clients that do not know `tool_calls` read only `tool_call`. So `tool_call` must be the first
    # of the calls.
    if tool_calls and tool_calls[0] != iteration.payload.get("tool_call"):
        raise BreachError("its agent committed a tool_call that is not the first of its tool_calls")
    for tool_call in tool_calls:
        result = tool_call.get("result")
        if result is None:
            raise BreachError("its agent committed a tool call without its result")
        _check_status(result)
        _check_count("duration_ms", tool_call, _MAX_COUNT)
        _check_count("truncated_bytes", result, _MAX_COUNT)


def _check_report(report: IterationReported) -> None:
    if report.number < 1:
        raise BreachError("its agent reported an iteration with a number below 1")
    _check_model_call(report.payload.get("model_call"))
    if len(report.payload.get("started_calls", ())) > MAX_TOOL_CALLS:
        raise BreachError(
            f"its agent reported more than {MAX_TOOL_CALLS} tool calls in one iteration"
        )
    if report.size_bytes > OPEN_ITERATION_BYTES:
        raise BreachError(
            f"its agent reported more than {OPEN_ITERATION_BYTES:,} bytes of an iteration"
        )


def _check_model_call(model_call: Mapping[str, Any] | None) -> None:
    if model_call is None:
        raise BreachError("its agent committed an iteration without a model call")
    _check_status(model_call)
    for name in TOKENS:
        _check_count(name, model_call, MAX_CALL_TOKENS)
    _check_count("duration_ms", model_call, _MAX_COUNT)


def _check_status(message: Mapping[str, Any]) -> None:
    # A known enum value is decoded to its name, an unknown one to its number.
    if not isinstance(message.get("status", ""), str):
        raise BreachError(f"its agent committed the unknown status {message['status']}")


def _check_count(name: str, message: Mapping[str, Any], limit: int) -> None:
    count = int(message.get(name, 0))
    if not 0 <= count <= limit:
        raise BreachError(f"its agent committed {count} as {name}; it must be 0 to {limit:,}")
