"""A message of an agent that breaks a rule is refused, and the agent is fenced."""

from collections.abc import Callable

import pytest
from evershell.agent.v1.runtime_service_pb2 import (
    CommitEventsRequest,
    HeartbeatRequest,
    HeartbeatResponse,
    RegisterRequest,
    TaskEnded,
    TaskEvent,
)
from google.protobuf.message import Message

from tests.support.world import World
from tests.wire.api.running import INTERNAL, Failed, Running, agent_bearer


def _commit(task_id: str, *events: TaskEvent) -> CommitEventsRequest:
    return CommitEventsRequest(task_id=task_id, events=events)


# One invalid iteration. tests/unit/core/test_agent_rules.py covers the other rules.
ITERATION = TaskEvent(iteration_completed={"number": 1, "model_call": {"input_tokens": -1}})  # type: ignore[arg-type]
BREACHES: dict[str, Callable[[str], tuple[str, Message]]] = {
    "an address": lambda task: ("Register", RegisterRequest(address="169.254.169.254:80")),
    "a phase": lambda task: ("Heartbeat", HeartbeatRequest(task_id=task, phase=99)),  # type: ignore[arg-type]
    "an end": lambda task: (
        "CommitEvents",
        _commit(task, TaskEvent(task_ended=TaskEnded(status=99))),  # type: ignore[arg-type]
    ),
    "a kind of event": lambda task: ("CommitEvents", _commit(task, TaskEvent())),
    "tokens": lambda task: ("CommitEvents", _commit(task, ITERATION)),
    "many events": lambda task: ("CommitEvents", _commit(task, *[TaskEvent()] * 1_000_000)),
}


@pytest.mark.parametrize("breach", BREACHES)
async def test_a_message_that_breaks_a_rule_fences_its_agent(
    server: Running, world: World, breach: str
) -> None:
    busy, running = await world.add_busy()
    method, request = BREACHES[breach](running.id)
    for _ in range(2):
        seen = await server.raw(
            INTERNAL + method, agent_bearer(busy.id), request.SerializeToString()
        )
        assert isinstance(seen, Failed) and seen.slug == "validation_error"
        assert "the pod is ended: its agent " in seen.message
    assert (await world.workspace(busy.id)).agent_breach is not None
    assert await world.task(busy.id, running.id) == running
    honest = HeartbeatRequest(task_id=running.id).SerializeToString()
    answer = await server.raw(f"{INTERNAL}Heartbeat", agent_bearer(busy.id), honest)
    assert isinstance(answer, bytes) and HeartbeatResponse.FromString(answer).directive.fenced
