"""What an agent that was taken over sends beyond the rules. Each is the last call of an attack."""

from collections.abc import Callable
from typing import Any

from evershell.agent.v1 import runtime_service_pb2 as messages

from tests.support.hostile_agent import HostileAgent, iterated

# The attacker, and the id of its task, which runs and may have two iterations.
Attack = Callable[[HostileAgent, str], str]


def _commits(*events: messages.TaskEvent) -> Attack:
    return lambda agent, task_id: agent.commit(task_id, *events)


def _registers(address: str) -> Attack:
    return lambda agent, _: agent.call("Register", messages.RegisterRequest(address=address))


def _event(**fields: Any) -> messages.TaskEvent:
    return messages.TaskEvent(**fields)


_HUGE = "x" * 2_500_000

ATTACKS: dict[str, Attack] = {
    "more iterations than the task may have": _commits(*map(iterated, (1, 2, 3))),
    "more bytes than a task may have": lambda agent, task_id: (
        agent.commit(task_id, iterated(1, _HUGE)) or agent.commit(task_id, iterated(2, _HUGE))
    ),
    "negative tokens": _commits(iterated(1, input_tokens=-(10**9))),
    "tokens that overflow": _commits(iterated(1, output_tokens=2**63 - 1)),
    "a status of the end that does not exist": _commits(_event(task_ended={"status": 99})),
    "a status of a model call that does not exist": _commits(iterated(1, status=99)),
    "a phase that does not exist": lambda agent, task_id: agent.call(
        "Heartbeat",
        messages.HeartbeatRequest(task_id=task_id, phase=99),  # type: ignore[arg-type]
    ),
    "an event of no kind": _commits(_event()),
    "an iteration without a model call": _commits(_event(iteration_completed={"number": 1})),
    "a tool call without its result": _commits(
        _event(iteration_completed={"number": 1, "model_call": {}, "tool_call": {"name": "x"}})
    ),
    "no address": _registers(""),
    "an address with NUL": _registers("127.0.0.1:1\0"),
    "a socket of the machine": _registers("unix:/run/docker.sock"),
    "the address of another machine": _registers("169.254.169.254:80"),
    "a name in place of an address": _registers("localhost:80"),
}
