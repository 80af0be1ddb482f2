"""The stream of the events of an organization, on a real server: gRPC and Server-Sent Events."""

from typing import Any

import grpc
import pytest
from evershell.workspace.v1 import workspace_service_pb2 as messages

from evershell.core import event_feeds
from tests.support.world import World, iteration
from tests.wire.api.running import Running, bearer
from tests.wire.api.test_event_stream import REST, parsed, read


def stream(server: Running, after: int = 0, **metadata: str) -> Any:
    request = messages.StreamOrganizationRequest(after=after)
    return server.stub.StreamOrganization(request, metadata=bearer(**REST, **metadata), timeout=10)


def watch(server: Running, after: int = 0) -> Any:
    request = messages.WatchOrganizationRequest(after=after)
    return server.stub.WatchOrganization(request, metadata=bearer(), timeout=10)


async def test_each_event_has_its_position(server: Running, world: World) -> None:
    call = watch(server)
    first = await call.read()
    begin = world.store.position
    assert (first.WhichOneof("message"), first.position) == ("heartbeat", begin)
    assert first.heartbeat.time.ToDatetime(world.clock().tzinfo) == world.clock()
    busy, running = await world.add_busy()
    other, _ = await world.add_busy()
    await world.commit(busy.id, running.id, iteration(1))
    found = [await call.read() for _ in range(5)]
    call.cancel()
    assert [(each.position - begin, each.event.workspace_id) for each in found] == [
        (1, busy.id),
        (2, busy.id),
        (3, other.id),
        (4, other.id),
        (5, busy.id),
    ]
    events = parsed(await read(stream(server, begin), 5))
    assert [(each.id, each.event) for each in events] == [
        (str(message.position), message.event.WhichOneof("payload")) for message in found
    ]
    assert [each.json()["position"] for each in events] == [each.id for each in events]
    assert events[4].json()["event"]["iteration_completed"]["number"] == 1


async def test_a_stream_opens_with_a_heartbeat_that_has_an_id(
    server: Running, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that stores the id of a heartbeat resumes a quiet stream after any time."""
    monkeypatch.setattr(event_feeds, "HEARTBEAT_SECONDS", 0.0)
    await world.add_busy()
    beats = parsed(await read(stream(server), 2))
    position = str(world.store.position)
    assert [(each.event, each.id) for each in beats] == [("heartbeat", position)] * 2
    assert beats[0].json().keys() == {"position", "heartbeat"}
    assert beats[0].retry == 1000


@pytest.mark.parametrize(("after", "last_id"), [(0, 2), (4, 2), (2, 0)])
async def test_a_stream_resumes_after_the_last_id(
    server: Running, world: World, after: int, last_id: int
) -> None:
    """The numbers are the distance from the first event; 0 is no position."""
    begin = world.store.position
    await world.add_busy()
    busy, _ = await world.add_busy()
    metadata = {"last_event_id": str(begin + last_id)} if last_id else {}
    call = stream(server, begin + after if after else 0, **metadata)
    (event,) = parsed(await read(call, 1))
    assert (event.id, event.json()["event"]["workspace_id"]) == (str(begin + 3), busy.id)


async def test_a_position_beyond_the_log_is_refused(server: Running, world: World) -> None:
    await world.add_busy()
    seen = await server.fails(stream(server, last_event_id=str(world.store.position + 1)))
    assert (seen.slug, seen.trailers["x-evershell-status"]) == ("validation_error", "400")
    assert "List the workspaces again" in seen.envelope["details"]["fields"]["after"]


async def test_an_error_in_the_stream_is_its_last_message(server: Running, world: World) -> None:
    await world.add_busy()
    rest, plain = stream(server), watch(server)
    await read(rest, 1)
    await plain.read()
    world.subscriptions.drain()
    (*_, failed) = parsed(await read(rest, 2))
    assert (failed.event, failed.json()["error"]["code"]) == ("stream_error", "unavailable")
    messages = [await plain.read(), await plain.read()]
    assert messages[0].WhichOneof("message") == "heartbeat"
    assert messages[1].error.message.endswith(f"Watch again with after={world.store.position}.")
    assert await plain.code() is grpc.StatusCode.UNAVAILABLE
