"""A watch: the stream reconnects by itself, and no event is lost or repeated."""

from collections.abc import Callable
from typing import Any

import grpc
import pytest
from evershell.workspace.v1 import error_pb2, event_pb2, task_pb2, workspace_service_pb2

from evershell.client import DeadlineExceededError, OrganizationEvent, TaskCompleted, TaskStatus
from evershell.core import errors
from tests.support.waiting import eventually
from tests.unit.client.fake_channel import TIMEOUT_SECONDS, Service, failed, start

HEARTBEAT = workspace_service_pb2.Heartbeat(seq=3)


def event(seq: int, task_id: str = "task_1") -> event_pb2.Event:
    return event_pb2.Event(seq=seq, task_id=task_id)


def end(seq: int, task_id: str = "task_1") -> event_pb2.Event:
    completed = event_pb2.TaskCompleted(status=task_pb2.Task.cancelled)
    return event_pb2.Event(
        seq=seq,
        type=event_pb2.EventType.task_completed,
        task_id=task_id,
        task_completed=completed,
    )


def error(slug: str, **details: Any) -> error_pb2.Error:
    found = error_pb2.Error(
        code=error_pb2.Error.ErrorCode.Value(slug), message="Because.", request_id="request_1"
    )
    found.details.update(details)
    return found


def test_a_stream_yields_events_and_no_heartbeats(service: Service) -> None:
    watched = service.client.watch("ws_1", after=3)
    first = start(next, watched)
    request, taken = service.take_stream()
    assert (request.workspace_id, request.after, service.channel.timeouts) == ("ws_1", 3, [None])
    taken.send(heartbeat=HEARTBEAT)
    taken.send(event=event(4))
    assert first.result(5).seq == 4
    watched.close()
    taken.await_cancelled()


def break_with_error(taken: Any) -> None:
    taken.send(error=error("unavailable", retry_after_seconds=1))


def break_connection(taken: Any) -> None:
    taken.fail_without_details(grpc.StatusCode.UNAVAILABLE)


def break_message(taken: Any) -> None:
    taken.fail_without_details(grpc.StatusCode.INTERNAL)


def end_stream(taken: Any) -> None:
    taken.end()


@pytest.mark.parametrize(
    "interrupt", [break_with_error, break_connection, break_message, end_stream]
)
def test_a_stream_that_ends_is_resumed_after_the_last_event(
    service: Service, interrupt: Callable[[Any], None]
) -> None:
    watched = service.client.watch("ws_1")
    first = start(next, watched)
    taken = service.take_stream()[1]
    taken.send(event=event(1))
    assert first.result(5).seq == 1
    second = start(next, watched)
    interrupt(taken)
    request, taken = service.take_stream()
    assert request.after == 1
    # The service does not send an event twice. If it did, the client would not yield it again.
    taken.send(event=event(1))
    taken.send(event=event(2))
    assert second.result(5).seq == 2


def test_a_watch_of_a_task_has_its_events_and_ends_with_it(service: Service) -> None:
    call = start(lambda: list(service.client.watch("ws_1", task_id="task_1")))
    taken = service.take_stream()[1]
    for each in (event(1, ""), event(2), event(3, "task_0"), end(4, "task_0"), end(5)):
        taken.send(event=each)
    events = call.result(5)
    assert [each.seq for each in events] == [2, 5]
    assert isinstance(events[1].payload, TaskCompleted)
    assert events[1].payload.status is TaskStatus.CANCELLED
    taken.await_cancelled()


@pytest.mark.parametrize(
    "slug", ["workspace_not_found", "permission_denied", "internal", "validation_error"]
)
def test_a_failure_that_time_does_not_heal_is_raised(service: Service, slug: str) -> None:
    call = start(next, service.client.watch("ws_1"))
    service.take_stream()[1].send(error=error(slug))
    assert (failed(call).code, failed(call).request_id) == (slug, "request_1")


def test_an_expired_token_is_renewed_once() -> None:
    tokens = iter(["eyJ.one", "eyJ.two", "eyJ.three"])
    service = Service(lambda: next(tokens))
    watched = service.client.watch("ws_1")
    call = start(next, watched)
    service.take_stream()[1].send(error=error("unauthenticated"))
    taken = service.take_stream()[1]
    assert service.metadata["authorization"] == "Bearer eyJ.two"
    taken.send(event=event(1))
    assert call.result(5).seq == 1
    call = start(next, watched)
    taken.send(error=error("unauthenticated"))
    service.take_stream()[1].send(error=error("unauthenticated"))
    assert failed(call).code == "unauthenticated"


def test_a_service_that_never_answers_is_unavailable_after_the_timeout(service: Service) -> None:
    call = start(next, service.client.watch("ws_1"))
    for opened in range(1, 100):
        eventually(lambda: call.done() or len(service.channel.timeouts) == opened)
        if call.done():
            break
        service.take_stream()[1].fail_without_details(grpc.StatusCode.UNAVAILABLE)
    assert failed(call).code == "unavailable"
    assert TIMEOUT_SECONDS / 2 < service.clock.time() <= TIMEOUT_SECONDS


def test_a_watch_ends_at_its_timeout(service: Service) -> None:
    call = start(next, service.client.watch("ws_1", timeout=3))
    taken = service.take_stream()[1]
    assert service.channel.timeouts == [3]
    taken.send(error=error("unavailable", retry_after_seconds=2))
    taken = service.take_stream()[1]
    assert service.channel.timeouts == [3, 1]
    taken.fail(errors.unavailable())
    assert isinstance(failed(call), DeadlineExceededError)


def test_a_stream_on_which_nothing_arrives_is_opened_again(service: Service) -> None:
    service.client._idle_seconds = 0.05
    call = start(next, service.client.watch("ws_1"))
    # After two silent streams in a row, the client goes on. After two streams that break in the
    # middle of a message, it would give up.
    for _ in range(2):
        service.take_stream()[1].await_cancelled()
    service.take_stream()[1].send(event=event(1))
    assert call.result(5).seq == 1


def test_a_watch_of_the_organization_yields_positions_and_resumes(service: Service) -> None:
    watched = service.client.watch_organization()
    first = start(next, watched)
    request, taken = service.take_stream("WatchOrganization")
    assert request.after == 0
    beat = workspace_service_pb2.OrganizationHeartbeat()
    taken.send(heartbeat=beat, position=7)
    assert first.result(5) == OrganizationEvent(7, None)
    # Positions have gaps, and each workspace counts its events itself.
    for position, seq in ((9, 4), (12, 1)):
        found = start(next, watched)
        taken.send(event=event(seq), position=position)
        assert (found.result(5).position, found.result(5).event.seq) == (position, seq)
    found = start(next, watched)
    taken.send(error=error("unavailable", retry_after_seconds=1))
    request, taken = service.take_stream("WatchOrganization")
    assert request.after == 12
    # A repeated event is left out.
    taken.send(event=event(1), position=12)
    taken.send(event=event(2), position=13)
    assert found.result(5).position == 13
    watched.close()
    taken.await_cancelled()
