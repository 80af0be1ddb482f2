"""Server-Sent Events, on a real server."""

import json
from datetime import timedelta
from typing import Any

import grpc
import httpx
import httpx_sse
import pytest
from evershell.workspace.v1 import workspace_service_pb2 as messages
from google.api.httpbody_pb2 import HttpBody
from google.protobuf.json_format import MessageToDict

from evershell.api import event_stream
from evershell.core import event_feeds
from evershell.core.errors import UnavailableError
from evershell.core.event import Event, EventType
from tests.support.world import NOW, World, iteration
from tests.wire.api.running import Running, bearer

REST = {"x_evershell_edge": "rest"}


def stream(server: Running, workspace_id: str, after: int = 0, **metadata: str) -> Any:
    request = messages.StreamEventsRequest(workspace_id=workspace_id, after=after)
    return server.stub.StreamEvents(request, metadata=bearer(**REST, **metadata), timeout=10)


async def read(call: Any, events: int) -> str:
    """The text of the stream, up to this number of events."""
    text = ""
    async for message in call:
        text += message.data.decode()
        if text.count("\n\n") == events:
            break
    return text


def parsed(text: str) -> list[httpx_sse.ServerSentEvent]:
    response = httpx.Response(200, headers={"content-type": "text/event-stream"}, text=text)
    return list(httpx_sse.EventSource(response).iter_sse())


async def test_each_event_has_its_seq_and_its_type(server: Running, world: World) -> None:
    busy, running = await world.add_busy()
    await world.commit(busy.id, running.id, iteration(1, "two\nlines \x85 \u2028 \u2029 🐚 \0"))
    events = parsed(await read(stream(server, busy.id), 3))
    assert [(event.id, event.event) for event in events] == [
        ("1", "task_submitted"),
        ("2", "task_started"),
        ("3", "iteration_completed"),
    ]
    assert events[0].retry == 1000
    request = messages.WatchEventsRequest(workspace_id=busy.id)
    call = server.stub.WatchEvents(request, metadata=bearer())
    expected: list[Any] = [await call.read() for _ in events]
    call.cancel()
    assert [event.json() for event in events] == [
        MessageToDict(
            message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
        for message in expected
    ]


def test_no_parser_sees_another_line_end() -> None:
    """Some parsers split lines at every line separator of Unicode."""
    text = "".join(map(chr, [*range(0x100), 0x2028, 0x2029]))
    payload = {"description": text, "max_iterations": 1, "submitted_by": ""}
    event = Event(
        seq=7, workspace_id="ws_1", type=EventType.TASK_SUBMITTED, time=NOW, payload=payload
    )
    frame = event_stream.frame(event).data.decode()
    kind, data, id_, end = frame.splitlines()
    assert (kind, id_, end) == ("event: task_submitted", "id: 7", "")
    content = json.loads(data.removeprefix("data: "))
    assert content["event"]["task_submitted"]["description"] == text


async def test_the_first_message_opens_an_empty_stream(server: Running, world: World) -> None:
    """Without this message, a browser would not know for 4 s whether it is connected."""
    idle = await world.add()
    first = await stream(server, idle.id).read()
    assert first == HttpBody(content_type="text/event-stream", data=b"retry: 1000\n")


async def test_a_quiet_stream_sends_comments(
    server: Running, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_feeds, "HEARTBEAT_SECONDS", 0.0)
    idle = await world.add()
    call = stream(server, idle.id)
    await call.read()
    text = "".join([(await call.read()).data.decode() for _ in range(2)])
    assert text == ": heartbeat\n: heartbeat\n"
    # Libraries do not report a comment as an event.
    assert [event.data for event in parsed(f"id: 1\ndata: x\n\n{text}{text}")] == ["x"]


@pytest.mark.parametrize(
    ("after", "last_id", "expected"), [(0, "2", 3), (1, "2", 3), (5, "1", 2), (2, "", 3)]
)
async def test_a_stream_resumes_after_the_last_id(
    server: Running, world: World, after: int, last_id: str, expected: int
) -> None:
    """To resume, a browser repeats the URL of its first call with the header `last-event-id`."""
    busy, running = await world.add_busy()
    await world.commit(busy.id, running.id, iteration(1))
    call = stream(server, busy.id, after, last_event_id=last_id)
    (event,) = parsed(await read(call, 1))
    assert event.id == str(expected)


async def test_a_stream_from_a_removed_event_is_refused(server: Running, world: World) -> None:
    busy, running = await world.add_busy()
    await world.end(busy.id, running.id)
    await world.run(busy)
    before = world.clock() + timedelta(seconds=1)
    await world.store.remove_old_tasks(busy.id, before, 0, 100)
    for after, last_id in ((1, ""), (0, "1")):
        seen = await server.fails(stream(server, busy.id, after, last_event_id=last_id))
        assert (seen.slug, seen.trailers["x-evershell-status"]) == ("validation_error", "400")
        assert "begins with seq 4" in seen.envelope["details"]["fields"]["after"]
    (event,) = parsed(await read(stream(server, busy.id), 1))
    assert event.id == "4"


async def test_a_stream_from_beyond_the_log_is_refused(server: Running, world: World) -> None:
    busy, _ = await world.add_busy()
    for after, last_id in ((3, ""), (0, "3")):
        seen = await server.fails(stream(server, busy.id, after, last_event_id=last_id))
        assert (seen.slug, seen.trailers["x-evershell-status"]) == ("validation_error", "400")
        assert "ends with seq 2" in seen.envelope["details"]["fields"]["after"]
    request = messages.WatchEventsRequest(workspace_id=busy.id, after=3)
    seen = await server.fails(server.stub.WatchEvents(request, metadata=bearer()))
    assert seen.code is grpc.StatusCode.INVALID_ARGUMENT
    (violation,) = seen.details["BadRequest"].field_violations
    assert (violation.field, "ends with seq 2" in violation.description) == ("after", True)


@pytest.mark.parametrize("last_id", ["x", "-1", "1.0", str(2**63), "1,2", "9" * 5_000])
async def test_an_invalid_last_id_is_refused(server: Running, world: World, last_id: str) -> None:
    idle = await world.add()
    seen = await server.fails(stream(server, idle.id, last_event_id=last_id))
    assert seen.slug == "validation_error"
    assert seen.envelope["details"]["fields"].keys() == {"last-event-id"}


async def test_before_the_stream_an_error_has_its_status(
    server: Running, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = await server.fails(stream(server, "ws_unknown"))
    assert (seen.slug, seen.trailers["x-evershell-status"]) == ("workspace_not_found", "404")
    busy, _ = await world.add_busy()

    async def fail(*_: object) -> Any:
        raise UnavailableError("the first read")

    monkeypatch.setattr(world.store, "list_events", fail)
    seen = await server.fails(stream(server, busy.id))
    assert (seen.slug, seen.code) == ("unavailable", grpc.StatusCode.UNAVAILABLE)


async def test_an_error_in_the_stream_is_its_last_event(server: Running, world: World) -> None:
    """The error has no id, so a client that reconnects continues after the last event."""
    busy, _ = await world.add_busy()
    call = stream(server, busy.id, x_request_id="req_7")
    await read(call, 2)
    world.subscriptions.drain()
    rest = "".join([message.data.decode() async for message in _until_failure(call)])
    frame = rest.removeprefix(": heartbeat\n")
    assert frame.startswith("event: stream_error\ndata: ")
    (event,) = parsed(frame)
    error = event.json()["error"]
    assert (error["code"], error["request_id"]) == ("unavailable", "req_7")
    assert error["message"].endswith("Watch again with after=2.")
    assert await call.code() is grpc.StatusCode.UNAVAILABLE


async def _until_failure(call: Any) -> Any:
    try:
        async for message in call:
            yield message
    except grpc.aio.AioRpcError:
        pass
