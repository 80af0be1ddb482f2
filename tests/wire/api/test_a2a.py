"""Calls of A2AService to a real server, with a store in memory."""

import asyncio
import json
import math
from typing import Any
from unittest.mock import AsyncMock

import grpc
import pytest
from a2a.types import a2a_pb2
from evershell.workspace.v1 import workspace_service_pb2 as messages
from google.api.httpbody_pb2 import HttpBody
from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct, Value

from evershell.api.call import LARGE_BODY_HEADER
from evershell.api.interceptors import shares
from evershell.core import tasks
from evershell.core.errors import UnavailableError
from evershell.core.event import AuditFilter, Origin
from evershell.core.task import TaskStarted
from evershell.core.tasks import SubmitTask
from tests.support.waiting import eventually_async
from tests.support.world import caller, iteration
from tests.wire.api.a2a_calls import A2A, error_type, headers, message, sending
from tests.wire.api.running import OBSERVER, READER, Failed, bearer


async def test_a_task_has_what_rest_shows(a2a: A2A) -> None:
    shown = await a2a.get()
    assert (shown.id, shown.context_id) == (a2a.task.id, a2a.workspace.id)
    assert shown.status.state == a2a_pb2.TASK_STATE_WORKING
    (request,) = shown.history
    assert (request.role, request.parts[0].text) == (a2a_pb2.ROLE_USER, a2a.task.description)
    rest = MessageToDict(
        await a2a.running.stub.GetTask(
            messages.GetTaskRequest(workspace_id=a2a.workspace.id, task_id=a2a.task.id),
            metadata=bearer(),
        ),
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
    )
    for name in ("id", "description", "result"):
        del rest[name]
    assert MessageToDict(shown.metadata) == rest
    assert not (await a2a.get(history_length=0)).history


async def test_a_cancelled_task_works_until_its_end_is_committed(a2a: A2A) -> None:
    """A repeated cancellation changes nothing before the end of the task, and fails after it."""
    first = await a2a.cancel(reason="wrong branch")
    assert first.status.state == a2a_pb2.TASK_STATE_WORKING
    facts = MessageToDict(first.metadata)
    assert facts["cancel_requested_by"] == "key_full_access"
    assert facts["cancel_reason"] == "wrong branch"
    again = await a2a.cancel(reason="another reason")
    assert MessageToDict(again.metadata) == facts
    await a2a.world.end(a2a.workspace.id, a2a.task.id, result="partial")
    ended = await a2a.get()
    assert ended.status.state == a2a_pb2.TASK_STATE_CANCELED
    assert [part.text for part in ended.artifacts[0].parts] == ["partial"]
    refused = await a2a.running.fails(a2a.cancel())
    assert error_type(refused) == "TASK_NOT_CANCELABLE"
    assert refused.code is grpc.StatusCode.FAILED_PRECONDITION
    assert refused.details["ErrorInfo"].metadata["status"] == "cancelled"


async def test_a_cancellation_includes_the_descendants_if_asked(a2a: A2A) -> None:
    """The second call cancels a descendant, although the task is already being cancelled."""
    world = a2a.world

    async def child() -> tuple[str, str]:
        idle = await world.add()
        submitted = await tasks.submit_task(
            caller(),
            SubmitTask(
                workspace_id=idle.id, description="ls", parent_task_id=a2a.task.id, origin=Origin()
            ),
            world.store,
            world.agents,
            world.subscriptions,
            world.clock,
        )
        return idle.id, submitted.id

    first, second = await child(), await child()
    await a2a.cancel()
    assert (await world.task(*first)).cancel is None
    await world.end(*second)
    await a2a.cancel(include_descendants=True)
    assert (await world.task(*first)).cancel is not None


@pytest.mark.parametrize("call", ["get", "cancel"])
async def test_a_call_that_meets_an_outage_can_be_repeated(
    a2a: A2A, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    for name in ("get_workspace_with_task", "record_cancellation"):
        monkeypatch.setattr(a2a.world.store, name, AsyncMock(side_effect=UnavailableError))
    refused = await a2a.running.fails(getattr(a2a, call)())
    assert refused.code is grpc.StatusCode.UNAVAILABLE
    assert "RetryInfo" in refused.details and "retry-after" in refused.trailers
    assert "repeat" not in refused.message


async def test_a_foreign_task_looks_like_none(a2a: A2A) -> None:
    foreign = await a2a.world.add(org_id="org_b")
    ids: list[dict[str, Any]] = [
        {"tenant": "ws_none", "id": a2a.task.id},
        {"tenant": foreign.id, "id": a2a.task.id},
        {"tenant": a2a.workspace.id, "id": "task_none"},
    ]
    for named in ids:
        request = a2a_pb2.GetTaskRequest(**named)
        refused = await a2a.running.fails(a2a.stub.GetTask(request, metadata=headers()))
        assert error_type(refused) == "TASK_NOT_FOUND"
        assert refused.code is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("version", ["", "0.3", "2.0", "1.1", "1.0.x"])
async def test_only_version_1_0_is_spoken(a2a: A2A, version: str) -> None:
    """Without the header, the version is 0.3."""
    metadata = bearer(a2a_version=version) if version else bearer()
    request = a2a_pb2.GetTaskRequest(**a2a.named)
    refused = await a2a.running.fails(a2a.stub.GetTask(request, metadata=metadata))
    assert error_type(refused) == "VERSION_NOT_SUPPORTED"
    await a2a.stub.GetTask(request, metadata=bearer(a2a_version="1.0.7"))


async def test_other_errors_keep_the_slug(a2a: A2A) -> None:
    request = a2a_pb2.CancelTaskRequest(**a2a.named)
    refused = await a2a.running.fails(a2a.stub.CancelTask(request, metadata=headers(READER)))
    info = refused.details["ErrorInfo"]
    assert (info.reason, info.domain) == ("PERMISSION_DENIED", "evershell.ai")
    assert refused.code is grpc.StatusCode.PERMISSION_DENIED


async def test_a_subscription_begins_with_the_task_and_ends_with_it(a2a: A2A) -> None:
    """The task includes the events that came before the subscription."""
    await a2a.world.commit(a2a.workspace.id, a2a.task.id, iteration(1, content="I look"))
    stream = aiter(
        a2a.stub.SubscribeToTask(a2a_pb2.SubscribeToTaskRequest(**a2a.named), metadata=headers())
    )
    opening = await anext(stream)
    assert opening.task.id == a2a.task.id
    await a2a.world.commit(a2a.workspace.id, a2a.task.id, iteration(2, content="I see"))
    await a2a.cancel(reason="enough")
    await a2a.world.end(a2a.workspace.id, a2a.task.id, result="partial")
    updates = [update async for update in stream]
    spoken, cancelled, artifact, end = updates
    assert spoken.status_update.status.message.parts[0].text == "I see"
    assert MessageToDict(spoken.status_update.metadata)["iteration_completed"]["number"] == 2
    assert cancelled.status_update.status.state == a2a_pb2.TASK_STATE_WORKING
    assert artifact.artifact_update.artifact.parts[0].text == "partial"
    assert end.status_update.status.state == a2a_pb2.TASK_STATE_CANCELED
    assert end.status_update.context_id == a2a.workspace.id
    refused = await a2a.running.fails(
        a2a.stub.SubscribeToTask(a2a_pb2.SubscribeToTaskRequest(**a2a.named), metadata=headers())
    )
    assert error_type(refused) == "UNSUPPORTED_OPERATION"


async def test_a_subscriber_that_leaves_is_forgotten(a2a: A2A) -> None:
    request = a2a_pb2.SubscribeToTaskRequest(**a2a.named)
    call = a2a.stub.SubscribeToTask(request, metadata=headers())
    await anext(aiter(call))
    subscriptions = a2a.world.subscriptions
    await eventually_async(lambda: subscriptions.has_subscribers(a2a.workspace.id))
    call.cancel()
    await eventually_async(lambda: not subscriptions.has_subscribers(a2a.workspace.id))


@pytest.mark.parametrize("extensions", [0, 150_000])
async def test_a_large_message_holds_the_place_of_its_body_until_it_has_arrived(
    a2a: A2A, monkeypatch: pytest.MonkeyPatch, extensions: int
) -> None:
    """A message that takes much memory keeps the place until its task ends."""
    few = {**shares.SHARES, shares.Kind.BODIES: shares.Share(1, 1, 1)}
    monkeypatch.setattr(shares, "SHARES", few)
    large = (*headers(), (LARGE_BODY_HEADER, "1"))
    idle, other = await a2a.world.add(), await a2a.world.add()
    request = sending(idle.id, configuration={})
    # Each extension takes two bytes of the message.
    request.message.extensions.extend([""] * extensions)
    waits = a2a.stub.SendMessage(request, metadata=large)
    sent = asyncio.ensure_future(waits)
    await eventually_async(lambda: a2a.world.subscriptions.has_subscribers(idle.id))
    if extensions:
        with pytest.raises(grpc.aio.AioRpcError, match="RESOURCE_EXHAUSTED"):
            await a2a.stub.SendMessage(sending(other.id), metadata=large)
    else:
        answer = await a2a.stub.SendMessage(sending(other.id), metadata=large)
        assert answer.task.id
    assert not sent.done()
    waits.cancel()
    await asyncio.gather(sent, return_exceptions=True)


async def test_a_message_begins_a_task(a2a: A2A) -> None:
    """The task has the parts and the metadata of the message, and the options of the request."""
    idle = await a2a.world.add()
    parts = [{"text": "echo one"}, {"text": "echo two", "media_type": "text/plain"}]
    request = sending(
        idle.id,
        message=message(parts=parts, metadata={"team": "a", "size": 3}, context_id=idle.id),
        metadata={"max_iterations": 7, "limits": {"max_duration": "60s"}, "other": True},
    )
    answer = await a2a.stub.SendMessage(request, metadata=headers())
    task = await a2a.world.task(idle.id, answer.task.id)
    assert task.description == "echo one\necho two"
    assert task.metadata == {"team": "a", "size": "3.0", "a2a_message_id": "m-1"}
    assert (task.max_iterations, task.limits.max_duration_seconds) == (7, 60)
    assert answer.task.status.state == a2a_pb2.TASK_STATE_SUBMITTED
    assert answer.task.history[0].message_id == "m-1"
    (entry,) = await a2a.world.store.list_audit_entries(
        caller().permission("workspace:read"), AuditFilter(rpc="SendMessage"), None, 9
    )
    assert (entry.outcome, entry.workspace_id, entry.task_id) == ("ok", idle.id, task.id)


async def test_a_repeated_message_gets_its_task_again(a2a: A2A) -> None:
    """A call with another credential, workspace, method or message is not a repeat."""
    idle, other = await a2a.world.add(), await a2a.world.add()
    first = await a2a.stub.SendMessage(sending(idle.id), metadata=headers())
    answered = {"return_immediately": True, "history_length": 0}
    repeat = sending(idle.id, configuration=answered)
    again = await a2a.stub.SendMessage(repeat, metadata=headers())
    assert again.task.id == first.task.id
    elsewhere = await a2a.stub.SendMessage(sending(other.id), metadata=headers())
    assert elsewhere.task.id != first.task.id
    by_another = a2a.stub.SendMessage(sending(idle.id), metadata=headers(OBSERVER))
    assert (await a2a.running.fails(by_another)).slug == "workspace_busy"
    streamed = a2a.stub.SendStreamingMessage(sending(idle.id), metadata=headers())
    assert (await a2a.running.fails(streamed)).slug == "workspace_busy"
    changed = sending(idle.id, message=message("false"))
    conflict = await a2a.running.fails(a2a.stub.SendMessage(changed, metadata=headers()))
    assert conflict.slug == "idempotency_conflict" and "m-1" in conflict.message
    await a2a.world.commit(idle.id, first.task.id, TaskStarted())
    await a2a.world.end(idle.id, first.task.id)
    late = await a2a.stub.SendMessage(sending(idle.id), metadata=headers())
    assert (late.task.id, late.task.status.state) == (first.task.id, a2a_pb2.TASK_STATE_COMPLETED)


async def test_a_message_is_answered_at_the_end_of_its_task(a2a: A2A) -> None:
    idle = await a2a.world.add()
    call = a2a.stub.SendMessage(sending(idle.id, configuration={}), metadata=headers())

    async def has_task() -> bool:
        return (await a2a.world.workspace(idle.id)).current_task_id is not None

    answer = asyncio.ensure_future(call)
    await eventually_async(has_task)
    task_id = (await a2a.world.workspace(idle.id)).current_task_id or ""
    await a2a.world.commit(idle.id, task_id, TaskStarted())
    assert not answer.done()
    await a2a.world.end(idle.id, task_id, result="found")
    ended = (await answer).task
    assert ended.status.state == a2a_pb2.TASK_STATE_COMPLETED
    assert ended.artifacts[0].parts[0].text == "found"


async def test_a_stream_of_a_message_begins_with_its_task(a2a: A2A) -> None:
    idle = await a2a.world.add()
    stream = aiter(a2a.stub.SendStreamingMessage(sending(idle.id), metadata=headers()))
    task_id = (await anext(stream)).task.id
    await a2a.world.commit(idle.id, task_id, TaskStarted())
    await a2a.world.end(idle.id, task_id, result="")
    states = [update.status_update.status.state async for update in stream]
    assert states == [a2a_pb2.TASK_STATE_WORKING, a2a_pb2.TASK_STATE_COMPLETED]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"message": message(message_id="")}, "message.message_id"),
        ({"message": message(role=a2a_pb2.ROLE_AGENT)}, "message.role"),
        ({"message": message(parts=[])}, "message.parts"),
        ({"message": message(" ")}, "message.parts"),
        ({"message": message(parts=[{"filename": "x"}])}, "message.parts"),
        ({"message": message(context_id="ctx_1")}, "message.context_id"),
        ({"configuration": {"history_length": -1}}, "configuration.history_length"),
        ({"metadata": {"limits": "soon"}}, "metadata.limits"),
        # Values that JSON cannot hold, but a protobuf message can.
        ({"metadata": {"limits": {"max_total_tokens": math.nan}}}, "metadata.limits"),
        ({"metadata": Struct(fields={"limits": Value()})}, "metadata.limits"),
        ({"message": message(metadata={"a": math.inf})}, "message.metadata"),
        ({"tenant": ""}, "tenant"),
    ],
)
async def test_a_message_that_is_not_valid_names_the_field(
    a2a: A2A, fields: dict[str, Any], expected: str
) -> None:
    request = sending(a2a.workspace.id, **fields)
    refused = await a2a.running.fails(a2a.stub.SendMessage(request, metadata=headers()))
    assert refused.slug == "validation_error"
    (violation,) = refused.details["BadRequest"].field_violations
    assert violation.field == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"message": message(parts=[{"text": "x"}, {"raw": b"x"}])}, "CONTENT_TYPE_NOT_SUPPORTED"),
        ({"message": message(parts=[{"url": "https://example.com/x"}])},
         "CONTENT_TYPE_NOT_SUPPORTED"),
        ({"message": message(parts=[{"text": "x", "media_type": "text/html"}])},
         "CONTENT_TYPE_NOT_SUPPORTED"),
        ({"configuration": {"accepted_output_modes": ["image/png"]}},
         "CONTENT_TYPE_NOT_SUPPORTED"),
        ({"message": message(task_id="task_none")}, "TASK_NOT_FOUND"),
    ],
)  # fmt: skip
async def test_what_the_agent_does_not_take_is_refused(
    a2a: A2A, fields: dict[str, Any], expected: str
) -> None:
    request = sending(a2a.workspace.id, **fields)
    refused = await a2a.running.fails(a2a.stub.SendMessage(request, metadata=headers()))
    assert error_type(refused) == expected


async def test_a_task_takes_no_second_message(a2a: A2A) -> None:
    refused = await a2a.running.fails(
        a2a.stub.SendMessage(
            sending(a2a.workspace.id, message=message(task_id=a2a.task.id)), metadata=headers()
        )
    )
    assert error_type(refused) == "UNSUPPORTED_OPERATION"
    mismatch = message(task_id=a2a.task.id, context_id="ctx_1")
    request = sending(a2a.workspace.id, message=mismatch)
    refused = await a2a.running.fails(a2a.stub.SendMessage(request, metadata=headers()))
    assert refused.slug == "validation_error"


async def test_tasks_are_listed_by_state_and_time_in_pages(a2a: A2A) -> None:
    world, place = a2a.world, a2a.workspace.id
    ids = [a2a.task.id]
    await world.end(place, a2a.task.id, result="first")
    for _ in range(2):
        world.clock.advance(60)
        ids.append((await world.run(await world.workspace(place))).id)
        if len(ids) < 3:
            await world.end(place, ids[-1])
    await a2a.stub.CancelTask(
        a2a_pb2.CancelTaskRequest(tenant=place, id=ids[-1]), metadata=headers()
    )

    async def listed(**fields: Any) -> Any:
        request = a2a_pb2.ListTasksRequest(tenant=place, **fields)
        return await a2a.stub.ListTasks(request, metadata=headers())

    first = await listed(page_size=2)
    assert [task.id for task in first.tasks] == ids[:0:-1]
    assert (first.page_size, first.total_size) == (2, 3)
    assert not first.tasks[1].artifacts
    second = await listed(page_size=2, page_token=first.next_page_token, include_artifacts=False)
    assert [task.id for task in second.tasks] == ids[:1] and not second.next_page_token
    working = await listed(status=a2a_pb2.TASK_STATE_WORKING)
    assert [task.id for task in working.tasks] == ids[2:]
    ended = await listed(status=a2a_pb2.TASK_STATE_COMPLETED, include_artifacts=True)
    assert [task.artifacts[0].parts[0].text for task in ended.tasks] == ["done", "first"]
    since = await listed(status_timestamp_after=world.clock())
    assert [task.id for task in since.tasks] == ids[2:] and since.total_size == 1
    assert not (await listed(context_id="ctx_1")).tasks
    assert len((await listed(context_id=place, history_length=0)).tasks) == 3
    for wrong in ({"page_size": 0}, {"page_size": 101}, {"history_length": -1}):
        assert (await a2a.running.fails(listed(**wrong))).slug == "validation_error"


async def test_a_list_over_http_has_its_required_fields(a2a: A2A) -> None:
    method = "/lf.a2a.v1.A2AService/ListTasks"
    idle = await a2a.world.add()
    request = a2a_pb2.ListTasksRequest(tenant=idle.id).SerializeToString()
    reply = await a2a.running.raw(method, headers(x_evershell_edge="rest"), request)
    assert isinstance(reply, bytes)
    content = json.loads(HttpBody.FromString(reply).data)
    assert content == {"tasks": [], "nextPageToken": "", "pageSize": 50, "totalSize": 0}


async def test_an_error_over_http_is_the_json_of_its_status(a2a: A2A) -> None:
    method = "/lf.a2a.v1.A2AService/CancelTask"
    await a2a.world.end(a2a.workspace.id, a2a.task.id)
    request = a2a_pb2.CancelTaskRequest(**a2a.named).SerializeToString()
    refused = await a2a.running.raw(method, headers(x_evershell_edge="rest"), request)
    assert isinstance(refused, Failed)
    assert refused.trailers["x-evershell-status"] == "400"
    error = refused.envelope
    assert (error["code"], error["status"]) == (400, "FAILED_PRECONDITION")
    assert error["details"][0]["@type"] == "type.googleapis.com/google.rpc.ErrorInfo"
    assert error["details"][0]["reason"] == "TASK_NOT_CANCELABLE"
