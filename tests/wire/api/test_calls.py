"""Calls over the wire: cancellations, and the stream of a workspace's log."""

import asyncio
from collections.abc import Sequence

import grpc
import pytest
from evershell.workspace.v1 import task_pb2
from evershell.workspace.v1 import workspace_service_pb2 as messages
from google.protobuf.json_format import MessageToDict
from grpc_health.v1 import health_pb2, health_pb2_grpc

from evershell.core.errors import UnavailableError
from evershell.core.event import Event
from tests.support.faulty_store import FaultyStore
from tests.support.world import World, iteration
from tests.wire.api.running import PUBLIC, Failed, Running, bearer

Outcome = messages.CancelTaskResponse.Outcome


async def test_a_cancellation_is_accepted_once(server: Running, world: World) -> None:
    busy, running = await world.add_busy()
    request = messages.CancelTaskRequest(workspace_id=busy.id, reason="too slow")
    first = await server.stub.CancelTask(request, metadata=bearer(x_request_id="req_7"))
    assert (first.outcome, first.workspace_id, first.task_id) == (
        Outcome.accepted,
        busy.id,
        running.id,
    )
    assert (first.requested_by, first.reason) == ("key_full_access", "too slow")
    assert first.requested_at.ToDatetime(world.clock().tzinfo) == world.clock()
    assert first.task.status == task_pb2.Task.Status.running
    assert first.task.cancel_requested_at == first.requested_at
    request.reason = "again"
    second = await server.stub.CancelTask(request, metadata=bearer())
    assert (second.outcome, second.reason, second.requested_at) == (
        Outcome.already_requested,
        "too slow",
        first.requested_at,
    )
    stored = await world.task(busy.id, running.id)
    assert stored.cancel is not None and stored.cancel.request_id == "req_7"


@pytest.mark.parametrize("is_named", [False, True])
async def test_agent_unreachable_reports_that_the_intent_is_recorded(
    server: Running, world: World, is_named: bool
) -> None:
    busy, running = await world.add_busy()
    world.agents.reachable = False
    task_id = running.id if is_named else ""
    request = messages.CancelTaskRequest(workspace_id=busy.id, task_id=task_id)
    seen = await server.fails(
        server.stub.CancelTask(request, metadata=bearer(x_evershell_edge="rest"))
    )
    assert (seen.code, seen.slug) == (grpc.StatusCode.UNAVAILABLE, "agent_unreachable")
    assert "RetryInfo" not in seen.details and "retry-after" not in seen.trailers
    assert seen.trailers["x-should-retry"] == "false"
    assert ("Do not repeat" in seen.message) != is_named
    assert seen.envelope["details"] == {
        "workspace_id": busy.id,
        "task_id": running.id,
        "intent_recorded": True,
    }
    assert (await world.task(busy.id, running.id)).cancel is not None


async def test_a_submitted_task_is_read_back_unchanged(server: Running, world: World) -> None:
    idle = await world.add()
    request = messages.SubmitTaskRequest(
        workspace_id=idle.id, description="ls", metadata={"k": "v"}, max_iterations=3
    )
    answer = await server.stub.SubmitTask(request, metadata=bearer())
    read = messages.GetTaskRequest(workspace_id=idle.id, task_id=answer.task_id)
    task = await server.stub.GetTask(read, metadata=bearer())
    assert (task.description, dict(task.metadata), task.max_iterations) == ("ls", {"k": "v"}, 3)
    assert answer.status == task.status == task_pb2.Task.Status.delivered
    listed = await server.stub.ListTasks(
        messages.ListTasksRequest(workspace_id=idle.id), metadata=bearer()
    )
    assert list(listed.tasks) == [task]


@pytest.mark.parametrize("unexpected", [False, True])
async def test_a_stream_that_fails_later_sends_the_error_as_its_last_message(
    server: Running, world: World, store: FaultyStore, unexpected: bool
) -> None:
    busy, running = await world.add_busy()
    request = messages.WatchEventsRequest(workspace_id=busy.id, after=1)
    call = server.stub.WatchEvents(request, metadata=bearer(x_request_id="req_7"))
    stream = aiter(call)
    assert (await anext(stream)).event.seq == 2
    await world.commit(busy.id, running.id, iteration(1))
    store.error = lambda: (
        ZeroDivisionError("hunter2") if unexpected else UnavailableError("10.0.0.7")
    )
    last: messages.WatchEventsResponse | None = None
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        async for message in stream:
            last = message
    slug = "internal" if unexpected else "unavailable"
    assert last is not None and last.WhichOneof("message") == "error"
    error = MessageToDict(last.error, preserving_proto_field_name=True)
    assert (error["code"], error["request_id"]) == (slug, "req_7")
    assert "hunter2" not in str(error) and "10.0.0.7" not in str(error)
    seen = Failed.of(raised.value)
    assert (seen.slug, seen.message) == (slug, error["message"])


async def test_the_server_reads_at_most_a_batch_ahead_of_a_slow_watcher(
    server: Running, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy, running = await world.add_busy()
    await world.commit(
        busy.id, running.id, *(iteration(number, "x" * 60_000) for number in range(1, 401))
    )
    reads: list[int] = []
    read = world.store.list_events

    async def record_and_read(workspace_id: str, after_seq: int, limit: int) -> Sequence[Event]:
        reads.append(after_seq)
        return await read(workspace_id, after_seq, limit)

    monkeypatch.setattr(world.store, "list_events", record_and_read)
    request = messages.WatchEventsRequest(workspace_id=busy.id)
    call = server.stub.WatchEvents(request, metadata=bearer())
    stream = aiter(call)
    seqs = [(await anext(stream)).event.seq]
    # These calls give the server time to read more of the log, which has 24 MB.
    for _ in range(50):
        await server.stub.GetWorkspace(
            messages.GetWorkspaceRequest(workspace_id=busy.id), metadata=bearer()
        )
    assert len(reads) <= 2
    async for message in stream:
        seqs.append(message.event.seq)
        if len(seqs) == 402:
            break
    call.cancel()
    assert seqs == list(range(1, 403))
    assert len(reads) >= 5


async def test_a_server_drains_until_its_health_clients_know(server: Running) -> None:
    health = health_pb2_grpc.HealthStub(server.channel)
    assert (
        await health.Check(health_pb2.HealthCheckRequest())
    ).status == health_pb2.HealthCheckResponse.SERVING
    draining = asyncio.create_task(server.server.drain(10))
    # The drain goes on with no call in flight, because a client that has not seen NOT_SERVING may
    # still send one.
    done, _ = await asyncio.wait((draining,), timeout=0.5)
    assert not done
    assert await server.raw(f"{PUBLIC}ListWorkspaces", bearer()) == b""
    assert (
        await health.Check(health_pb2.HealthCheckRequest())
    ).status == health_pb2.HealthCheckResponse.NOT_SERVING
    async with asyncio.timeout(5):
        await draining
