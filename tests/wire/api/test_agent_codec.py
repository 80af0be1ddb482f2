"""The codec between the messages of agents and the core's objects loses no field."""

from datetime import timedelta

import pytest
from evershell.agent.v1 import runtime_service_pb2
from evershell.workspace.v1 import task_pb2

from evershell.api import codec
from evershell.core.agent_rules import BreachError
from evershell.core.event import Event, EventType
from evershell.core.runtime import Directive
from evershell.core.task import IterationCompleted, Phase, TaskEnded, TaskStarted, TaskStatus
from tests.support.world import NOW
from tests.wire.api.full_task import INTENT, ITERATION, TASK


def test_an_iteration_is_the_same_in_the_log_and_from_the_agent() -> None:
    reported = runtime_service_pb2.TaskEvent()
    entry = Event(
        workspace_id="ws_1", seq=1, type=EventType.ITERATION_COMPLETED, time=NOW, payload=ITERATION
    )
    reported.iteration_completed.CopyFrom(codec.encode_event(entry).event.iteration_completed)
    (decoded,) = codec.decode_agent_events([reported])
    size_bytes = reported.iteration_completed.ByteSize()
    assert decoded == IterationCompleted(1, ITERATION, size_bytes)


def test_an_iteration_without_a_tool_call_has_none() -> None:
    reported = runtime_service_pb2.TaskEvent()
    reported.iteration_completed.number = 1
    reported.iteration_completed.model_call.content = "c"
    (decoded,) = codec.decode_agent_events([reported])
    assert isinstance(decoded, IterationCompleted) and "tool_call" not in decoded.payload


def test_a_start_and_each_end_are_decoded() -> None:
    start = runtime_service_pb2.TaskEvent(task_started=runtime_service_pb2.TaskStarted())
    assert codec.decode_agent_events([start]) == [TaskStarted()]
    for status in (TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.CANCELLED):
        ended = runtime_service_pb2.TaskEnded(
            status=task_pb2.Task.Status.Value(status), result="r", reason="w", forced=True
        )
        reported = runtime_service_pb2.TaskEvent(task_ended=ended)
        assert codec.decode_agent_events([reported]) == [
            TaskEnded(status=status, result="r", reason="w", forced=True)
        ]


@pytest.mark.parametrize(
    "status", ["status_unspecified", "submitted", "delivered", "running", "delivery_failed"]
)
def test_a_status_that_is_no_end_is_refused(status: str) -> None:
    ended = runtime_service_pb2.TaskEnded(status=task_pb2.Task.Status.Value(status))
    with pytest.raises(BreachError):
        codec.decode_agent_events([runtime_service_pb2.TaskEvent(task_ended=ended)])


def test_the_phases_of_an_agent_are_decoded() -> None:
    assert {codec.decode_phase(value) for value in task_pb2.Task.Phase.values()} == set(Phase)


def test_a_directive_has_the_task_and_its_intent() -> None:
    assert INTENT.force_at is not None
    now = INTENT.force_at - timedelta(seconds=4)
    seen = codec.encode_directive(Directive(fenced=False, task=TASK, lease_seconds=1.2), 1.5, now)
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
    assert not codec.encode_directive(Directive(fenced=True, task=None), 1, NOW).HasField("task")
