"""The codec between the messages of agents and the core's objects keeps every field."""

from datetime import timedelta
from typing import Any

import pytest
from evershell.agent.v1 import runtime_service_pb2
from evershell.workspace.v1 import event_pb2, task_pb2

from evershell.api import agent_codec
from evershell.api.event_codec import encode_event
from evershell.core.agent_rules import BreachError
from evershell.core.event import Event, EventType
from evershell.core.runtime import Directive
from evershell.core.task import (
    MAX_TOOL_CALLS,
    IterationCompleted,
    Phase,
    TaskEnded,
    TaskStarted,
    TaskStatus,
)
from tests.support.world import NOW
from tests.wire.api.full_task import INTENT, ITERATION, PARALLEL, TASK


def _in_the_log(payload: Any) -> event_pb2.IterationCompleted:
    entry = Event(
        workspace_id="ws_1", seq=1, type=EventType.ITERATION_COMPLETED, time=NOW, payload=payload
    )
    return encode_event(entry).event.iteration_completed


@pytest.mark.parametrize("payload", [ITERATION, PARALLEL])
def test_an_iteration_is_the_same_in_the_log_and_from_the_agent(payload: Any) -> None:
    reported = runtime_service_pb2.TaskEvent()
    reported.iteration_completed.CopyFrom(_in_the_log(payload))
    (decoded,) = agent_codec.decode_agent_events([reported])
    size_bytes = reported.iteration_completed.ByteSize()
    assert decoded == IterationCompleted(1, payload, size_bytes)


def test_a_caller_that_knows_one_tool_call_reads_the_first_of_several() -> None:
    assert _in_the_log(PARALLEL).tool_call == _in_the_log(ITERATION).tool_call


def test_tool_calls_beyond_the_limit_are_not_decoded() -> None:
    reported = runtime_service_pb2.TaskEvent()
    reported.iteration_completed.CopyFrom(_in_the_log(PARALLEL))
    for _ in range(2 * MAX_TOOL_CALLS):
        reported.iteration_completed.tool_calls.add()
    size_bytes = reported.iteration_completed.ByteSize()
    (decoded,) = agent_codec.decode_agent_events([reported])
    assert isinstance(decoded, IterationCompleted)
    assert (len(decoded.tool_calls), decoded.size_bytes) == (MAX_TOOL_CALLS + 1, size_bytes)


def test_an_iteration_without_a_tool_call_has_none() -> None:
    reported = runtime_service_pb2.TaskEvent()
    reported.iteration_completed.number = 1
    reported.iteration_completed.model_call.content = "c"
    (decoded,) = agent_codec.decode_agent_events([reported])
    assert isinstance(decoded, IterationCompleted) and "tool_call" not in decoded.payload


def test_a_start_and_each_end_are_decoded() -> None:
    start = runtime_service_pb2.TaskEvent(task_started=runtime_service_pb2.TaskStarted())
    assert agent_codec.decode_agent_events([start]) == [TaskStarted()]
    for status in (TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.CANCELLED):
        ended = runtime_service_pb2.TaskEnded(
            status=task_pb2.Task.Status.Value(status), result="r", reason="w", forced=True
        )
        reported = runtime_service_pb2.TaskEvent(task_ended=ended)
        assert agent_codec.decode_agent_events([reported]) == [
            TaskEnded(status=status, result="r", reason="w", forced=True)
        ]


@pytest.mark.parametrize(
    "status", ["status_unspecified", "submitted", "delivered", "running", "delivery_failed"]
)
def test_a_status_that_is_no_end_is_refused(status: str) -> None:
    ended = runtime_service_pb2.TaskEnded(status=task_pb2.Task.Status.Value(status))
    with pytest.raises(BreachError):
        agent_codec.decode_agent_events([runtime_service_pb2.TaskEvent(task_ended=ended)])


def test_the_phases_of_an_agent_are_decoded() -> None:
    assert {agent_codec.decode_phase(value) for value in task_pb2.Task.Phase.values()} == set(Phase)


def test_a_directive_has_the_task_and_its_intent() -> None:
    assert INTENT.force_at is not None
    now = INTENT.force_at - timedelta(seconds=4)
    seen = agent_codec.encode_directive(
        Directive(fenced=False, task=TASK, lease_seconds=1.2), 1.5, now
    )
    assert (seen.fenced, seen.lease_ms, seen.lease_length_ms) == (False, 1200, 1500)
    assert (
        seen.task.task_id,
        seen.task.description,
        seen.task.max_iterations,
        seen.task.iterations,
    ) == ("task_1", "ls", 7, 5)
    assert (
        seen.task.cancellation.reason,
        seen.task.cancellation.force_after_ms,
    ) == ("enough", 4_000)
    assert not agent_codec.encode_directive(Directive(fenced=True, task=None), 1, NOW).HasField(
        "task"
    )
