"""Waiting for the end of a task, with or without cancelling it."""

from typing import Any

import grpc
import pytest
from evershell.workspace.v1 import task_pb2, workspace_service_pb2

from evershell.client import CancelOutcome, TaskNotEndedError, TaskStatus
from evershell.core import errors
from tests.unit.client.fake_channel import Service, failed, start

Reply = workspace_service_pb2.CancelTaskResponse
Task = task_pb2.Task
UNREACHABLE = errors.agent_unreachable("ws_1", "task_1", "recorded", intent_recorded=True)


def reply(outcome: "Reply.Outcome.ValueType", status: "Task.Status.ValueType") -> Reply:
    task = Task(id="task_1", status=status, cancel_requested_by="key_1", cancel_reason="why")
    return Reply(workspace_id="ws_1", task_id="task_1", outcome=outcome, task=task)


def answer(service: Service, reply: Reply) -> Any:
    request, taken = service.take("CancelTask")
    taken.answer(reply)
    return request


def test_the_wait_goes_on_with_the_id_of_the_task(service: Service) -> None:
    call = start(service.client.cancel_and_wait, "ws_1", reason="why", force_after=60)
    first = answer(service, reply(Reply.accepted, Task.running))
    assert (first.task_id, first.wait.seconds, first.force_after.seconds) == ("", 30, 60)
    again = answer(service, reply(Reply.already_requested, Task.running))
    assert (again.task_id, again.wait.seconds) == ("task_1", 30)
    # A second `force_after` would count from now, and end later than the recorded deadline.
    assert not again.HasField("force_after")
    answer(service, reply(Reply.already_finished, Task.cancelled))
    result = call.result(5)
    assert (result.outcome, result.task.status, result.request_id) == (
        CancelOutcome.ACCEPTED,
        TaskStatus.CANCELLED,
        "request_1",
    )


@pytest.mark.parametrize(
    "answer_",
    [
        reply(Reply.already_finished, Task.completed),
        Reply(workspace_id="ws_1", outcome=Reply.no_active_task),
        reply(Reply.accepted, Task.cancelled),
    ],
)
def test_one_call_is_enough_if_there_is_nothing_to_wait_for(
    service: Service, answer_: Reply
) -> None:
    call = start(service.client.cancel_and_wait, "ws_1")
    answer(service, answer_)
    assert call.result(5).is_over
    assert len(service.channel.timeouts) == 1


def test_an_agent_that_cannot_be_reached_is_waited_for(service: Service) -> None:
    call = start(service.client.cancel_and_wait, "ws_1")
    service.take("CancelTask")[1].fail(UNREACHABLE)
    request, taken = service.take("CancelTask")
    assert request.task_id == "task_1"
    taken.fail(UNREACHABLE)
    answer(service, reply(Reply.already_requested, Task.cancelled))
    result = call.result(5)
    assert (result.outcome, result.requested_by, result.reason, result.is_over) == (
        CancelOutcome.ALREADY_REQUESTED,
        "key_1",
        "why",
        True,
    )


def test_a_first_call_that_fails_is_not_repeated(service: Service) -> None:
    call = start(service.client.cancel_and_wait, "ws_1")
    service.take("CancelTask")[1].fail(errors.unavailable())
    assert failed(call).code == "unavailable"
    assert len(service.channel.timeouts) == 1


def test_a_wait_survives_an_outage_and_gives_up_after_a_long_one(service: Service) -> None:
    call = start(service.client.with_options(max_retries=0).cancel_and_wait, "ws_1")
    answer(service, reply(Reply.accepted, Task.running))
    service.take("CancelTask")[1].fail(errors.unavailable())
    service.clock.sleep_for(200)
    answer(service, reply(Reply.already_requested, Task.running))
    # The connection was lost without a sign, so the call ends at the client's deadline.
    service.take("CancelTask")[1].fail_without_details(grpc.StatusCode.DEADLINE_EXCEEDED)
    answer(service, reply(Reply.already_requested, Task.running))
    service.take("CancelTask")[1].fail(errors.unavailable())
    taken = service.take("CancelTask")[1]
    service.clock.sleep_for(301)
    taken.fail(errors.unavailable())
    assert failed(call).code == "unavailable"


def test_a_task_that_does_not_end_in_time_is_an_error_that_says_it_is_recorded(
    service: Service,
) -> None:
    call = start(service.client.cancel_and_wait, "ws_1", timeout=2)
    request, taken = service.take("CancelTask")
    assert request.wait.seconds == 2
    service.clock.sleep_for(2)
    taken.answer(reply(Reply.accepted, Task.running))
    error = call.exception(5)
    assert isinstance(error, TaskNotEndedError)
    assert error.result is not None and error.result.outcome is CancelOutcome.ACCEPTED
    assert "task_1 is recorded, but the task did not end within 2 s" in str(error)


def test_a_task_is_waited_for_without_cancelling_it(service: Service) -> None:
    call = start(service.client.wait_for_task, "ws_1", "task_1")
    for status in (Task.delivered, Task.running, Task.completed):
        service.take("GetTask")[1].answer(Task(id="task_1", status=status))
    assert call.result(5).status is TaskStatus.COMPLETED
    assert service.clock.time() == 1.0
    call = start(service.client.wait_for_task, "ws_1", "task_1", timeout=0.5)
    for _ in range(2):
        service.take("GetTask")[1].answer(Task(id="task_1", status=Task.running))
    with pytest.raises(TaskNotEndedError, match="Task task_1 is running and did not end"):
        call.result(5)
