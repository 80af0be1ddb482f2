"""The client with a fake channel and a fake clock, and with real connections that fail."""

import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import grpc
import pytest
from evershell.workspace.v1 import (
    error_pb2,
    event_pb2,
    task_pb2,
    workspace_pb2,
    workspace_service_pb2,
)
from google.protobuf.duration_pb2 import Duration

from evershell.server.api.status import RULES
from evershell.server.client import ATTEMPTS, WorkspaceClient, WorkspaceServiceError
from evershell.server.core import errors
from evershell.server.core.errors import Failure
from tests.support.fake_channel import TIMEOUT_SECONDS, Service, trailers

Reply = workspace_service_pb2.CancelTaskResponse
UNREACHABLE = errors.agent_unreachable(
    "ws_1", "task_1", "recorded, not delivered", intent_recorded=True
)


@pytest.fixture
def service() -> Service:
    return Service()


def start(call: Callable[..., Any], *arguments: Any, **fields: Any) -> "Future[Any]":
    """Makes a call in a thread, while the test acts as the service.

    The thread is a daemon, so that a call without an answer does not block the exit.
    """
    made: Future[Any] = Future()

    def run() -> None:
        try:
            made.set_result(call(*arguments, **fields))
        except WorkspaceServiceError as error:
            made.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return made


def failed(call: "Future[Any]") -> WorkspaceServiceError:
    error = call.exception(5)
    assert isinstance(error, WorkspaceServiceError)
    return error


def test_a_plain_cancellation_sends_only_the_workspace_id(service: Service) -> None:
    call = start(service.client.cancel_task, "ws_1")
    request, taken = service.take("CancelTask")
    reply = Reply(workspace_id="ws_1", outcome=Reply.accepted)
    taken.answer(reply)
    assert request == workspace_service_pb2.CancelTaskRequest(workspace_id="ws_1")
    assert call.result(5) == reply
    assert service.channel.timeouts == [TIMEOUT_SECONDS]


def test_a_wait_extends_the_timeout_of_the_call(service: Service) -> None:
    start(
        service.client.cancel_task,
        "ws_1",
        "task_1",
        "why",
        wait_seconds=12.5,
        force_after_seconds=0,
    )
    request, taken = service.take("CancelTask")
    taken.answer(Reply())
    assert request == workspace_service_pb2.CancelTaskRequest(
        workspace_id="ws_1",
        task_id="task_1",
        reason="why",
        wait=Duration(seconds=12, nanos=500_000_000),
        force_after=Duration(),
    )
    assert request.HasField("force_after")
    assert service.channel.timeouts == [TIMEOUT_SECONDS + 12.5]


@pytest.mark.parametrize(
    ("rpc", "call", "request_", "reply"),
    [
        ("SubmitTask",
         lambda client: client.submit_task("ws_1", "true", metadata={"a": "b"}, max_iterations=3),
         {"workspace_id": "ws_1", "description": "true", "metadata": {"a": "b"},
          "max_iterations": 3},
         workspace_service_pb2.SubmitTaskResponse(task_id="task_1")),
        ("GetTask", lambda client: client.get_task("ws_1", "task_1"),
         {"workspace_id": "ws_1", "task_id": "task_1"}, task_pb2.Task(id="task_1")),
        ("CreateWorkspace", lambda client: client.create_workspace("mine"),
         {"name": "mine"}, workspace_pb2.Workspace(id="ws_1")),
        ("GetWorkspace", lambda client: client.get_workspace("ws_1"),
         {"workspace_id": "ws_1"}, workspace_pb2.Workspace(id="ws_1")),
        ("StopWorkspace", lambda client: client.stop_workspace("ws_1"),
         {"workspace_id": "ws_1"}, workspace_pb2.Workspace(id="ws_1")),
        ("ResumeWorkspace", lambda client: client.resume_workspace("ws_1"),
         {"workspace_id": "ws_1"}, workspace_pb2.Workspace()),
    ],
)  # fmt: skip
def test_each_other_call_sends_its_request_and_returns_the_reply(
    service: Service, rpc: str, call: Any, request_: dict[str, Any], reply: Any
) -> None:
    made = start(call, service.client)
    request, taken = service.take(rpc)
    taken.answer(reply)
    assert request == getattr(workspace_service_pb2, f"{rpc}Request")(**request_)
    assert made.result(5) == reply
    assert service.channel.timeouts == [TIMEOUT_SECONDS]


def test_tasks_are_listed_over_all_pages(service: Service) -> None:
    call = start(lambda: [task.id for task in service.client.list_tasks("ws_1", page_size=1)])
    tokens = []
    for task_id, next_page_token in (("task_2", "task_2"), ("task_1", "")):
        request, taken = service.take("ListTasks")
        tokens.append(request.page_token)
        taken.answer(
            workspace_service_pb2.ListTasksResponse(
                tasks=[task_pb2.Task(id=task_id)], next_page_token=next_page_token
            )
        )
        assert request.page_size == 1
    assert call.result(5) == ["task_2", "task_1"]
    assert tokens == ["", "task_2"]


@pytest.mark.parametrize(
    ("failure", "details"),
    [
        (errors.invalid({"reason": "too long"}), {"fields": {"reason": "too long"}}),
        (errors.unauthenticated("No credential."), {}),
        (errors.permission_denied("no", ["workspace:write", "workspace:write:own"]),
         {"required": "workspace:write,workspace:write:own"}),
        (errors.workspace_not_found("ws_1"),
         {"resource_type": "workspace", "resource_name": "ws_1"}),
        (Failure("workspace_stopped", "It is stopped.", workspace_id="ws_1"),
         {"workspace_id": "ws_1"}),
        (UNREACHABLE, {"workspace_id": "ws_1", "task_id": "task_1", "intent_recorded": "true"}),
        (Failure("rate_limited", "Too many.", retry_after_seconds=0.25),
         {"retry_after_seconds": 0.25}),
        (errors.unavailable(), {"retry_after_seconds": 1.0}),
        (Failure("internal", "A defect."), {}),
    ],
    ids=lambda value: getattr(value, "slug", ""),
)  # fmt: skip
def test_an_error_has_the_details_of_the_failure(
    service: Service, failure: Failure, details: dict[str, Any]
) -> None:
    call = start(service.client.cancel_task, "ws_1")
    service.take("CancelTask")[1].fail(failure)
    error = failed(call)
    assert (error.slug, error.message, error.request_id) == (
        failure.slug,
        failure.message,
        "request_1",
    )
    assert error.details == details
    assert error.http_status == RULES[failure.slug].http
    assert "sk_secret" not in repr(error) + str(error)


@pytest.mark.parametrize(
    ("code", "slug"),
    [
        ("UNAVAILABLE", "unavailable"),
        ("DEADLINE_EXCEEDED", "deadline_exceeded"),
        ("INTERNAL", "internal"),
        ("UNAUTHENTICATED", "unauthenticated"),
        ("PERMISSION_DENIED", "permission_denied"),
        ("NOT_FOUND", "not_found"),
        ("INVALID_ARGUMENT", "validation_error"),
        ("FAILED_PRECONDITION", "invalid_state"),
        ("RESOURCE_EXHAUSTED", "rate_limited"),
        ("UNIMPLEMENTED", "method_not_allowed"),
        ("UNKNOWN", "internal"),
        ("CANCELLED", "internal"),
    ],
)
def test_the_slug_of_a_failure_without_details_follows_from_its_code(
    service: Service, code: str, slug: str
) -> None:
    call = start(service.client.cancel_task, "ws_1")
    service.take("CancelTask")[1].fail_without_details(
        grpc.StatusCode[code], ("x-request-id", "request_2")
    )
    error = failed(call)
    assert (error.slug, error.message, error.request_id, error.details) == (
        slug,
        "it broke",
        "request_2",
        {},
    )


def test_details_that_contradict_the_status_are_ignored(service: Service) -> None:
    call = start(service.client.cancel_task, "ws_1")
    service.take("CancelTask")[1].fail_without_details(
        grpc.StatusCode.UNAVAILABLE, *trailers(errors.workspace_not_found("ws_1"))
    )
    assert failed(call).slug == "unavailable"


def test_a_cancellation_without_a_task_id_is_never_retried(service: Service) -> None:
    call = start(service.client.cancel_task, "ws_1")
    service.take("CancelTask")[1].fail(errors.unavailable())
    assert failed(call).slug == "unavailable"
    assert len(service.channel.timeouts) == 1
    assert service.clock.time() == 0


@pytest.mark.parametrize("rpc", ["SubmitTask", "CreateWorkspace"])
def test_a_call_that_is_not_idempotent_is_not_retried(service: Service, rpc: str) -> None:
    calls: dict[str, Callable[..., Any]] = {
        "SubmitTask": lambda: service.client.submit_task("ws_1", "true"),
        "CreateWorkspace": service.client.create_workspace,
    }
    call = start(calls[rpc])
    service.take(rpc)[1].fail(errors.unavailable())
    assert failed(call).slug == "unavailable"
    assert len(service.channel.timeouts) == 1


def test_a_cancellation_with_a_task_id_is_retried_within_its_timeout(
    service: Service,
) -> None:
    call = start(service.client.cancel_task, "ws_1", "task_1")
    service.take("CancelTask")[1].fail(errors.unavailable())
    service.take("CancelTask")[1].answer(Reply(outcome=Reply.already_requested))
    assert call.result(5).outcome == Reply.already_requested
    assert service.channel.timeouts == [TIMEOUT_SECONDS, TIMEOUT_SECONDS - 1]


def test_a_rate_limited_call_is_retried_after_the_given_time(service: Service) -> None:
    call = start(service.client.cancel_task, "ws_1", "task_1")
    service.take("CancelTask")[1].fail(errors.rate_limited("Too many.", 2))
    service.take("CancelTask")[1].answer(Reply(outcome=Reply.accepted))
    assert call.result(5).outcome == Reply.accepted
    assert service.channel.timeouts == [TIMEOUT_SECONDS, TIMEOUT_SECONDS - 2]


def test_a_rate_limited_cancellation_without_a_task_id_is_not_retried(
    service: Service,
) -> None:
    call = start(service.client.cancel_task, "ws_1")
    service.take("CancelTask")[1].fail(errors.rate_limited("Too many.", 2))
    assert (failed(call).slug, failed(call).details["retry_after_seconds"]) == ("rate_limited", 2)
    assert len(service.channel.timeouts) == 1


def test_agent_unreachable_is_not_retried(service: Service) -> None:
    call = start(service.client.cancel_task, "ws_1", "task_1")
    service.take("CancelTask")[1].fail(UNREACHABLE)
    assert failed(call).slug == "agent_unreachable"
    assert len(service.channel.timeouts) == 1


def test_a_read_is_retried_up_to_the_limit(service: Service) -> None:
    call = start(service.client.get_workspace, "ws_1")
    for _ in range(ATTEMPTS):
        service.take("GetWorkspace")[1].fail_without_details(grpc.StatusCode.UNAVAILABLE)
    assert failed(call).slug == "unavailable"
    limits = [limit for limit in service.channel.timeouts if limit is not None]
    assert len(limits) == ATTEMPTS and limits == sorted(limits, reverse=True)


def test_a_read_is_not_retried_after_its_timeout(service: Service) -> None:
    call = start(service.client.get_task, "ws_1", "task_1")
    service.take("GetTask")[1].fail(
        Failure("unavailable", "Later.", retry_after_seconds=TIMEOUT_SECONDS)
    )
    assert failed(call).details["retry_after_seconds"] == TIMEOUT_SECONDS
    assert len(service.channel.timeouts) == 1


def test_a_stream_yields_events_without_heartbeats_and_raises_its_error(
    service: Service,
) -> None:
    watched = service.client.watch_events("ws_1", after=3)
    first = start(next, watched)
    request, taken = service.take_stream()
    assert (request.workspace_id, request.after, service.channel.timeouts) == ("ws_1", 3, [None])
    taken.send_response(
        workspace_service_pb2.WatchEventsResponse(heartbeat=workspace_service_pb2.Heartbeat(seq=3))
    )
    taken.send_response(workspace_service_pb2.WatchEventsResponse(event=event_pb2.Event(seq=4)))
    assert first.result(5).seq == 4
    sent = error_pb2.Error(
        code=error_pb2.Error.unavailable, message="Try again.", request_id="request_1"
    )
    sent.details.update({"retry_after_seconds": 1})
    taken.send_response(workspace_service_pb2.WatchEventsResponse(error=sent))
    with pytest.raises(WorkspaceServiceError, match=r"unavailable: Try again\.") as raised:
        next(watched)
    assert (raised.value.request_id, raised.value.details) == (
        "request_1",
        {"retry_after_seconds": 1},
    )
    taken.cancelled()


def test_a_service_that_does_not_listen_is_unavailable() -> None:
    with (
        WorkspaceClient("127.0.0.1:1", "sk_secret") as client,
        pytest.raises(WorkspaceServiceError) as raised,
    ):
        client.cancel_task("ws_1")
    assert (raised.value.slug, raised.value.request_id, raised.value.http_status) == (
        "unavailable",
        "",
        503,
    )


def test_a_service_that_does_not_answer_exceeds_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with (
            WorkspaceClient(address, "sk_secret", timeout_seconds=0.1) as client,
            pytest.raises(WorkspaceServiceError) as raised,
        ):
            client.cancel_task("ws_1")
    assert raised.value.slug == "deadline_exceeded"
