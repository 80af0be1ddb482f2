"""The log line of each call: its fields, its sampling, and what happens if it is not written."""

import asyncio
from collections.abc import Iterator
from typing import Any
from unittest.mock import Mock

import pytest
import structlog
from evershell.agent.v1.runtime_service_pb2 import RegisterRequest
from evershell.workspace.v1 import workspace_service_pb2 as messages
from structlog.testing import LogCapture

from evershell.api.call import Call
from evershell.api.interceptors.interceptor import Method
from evershell.api.interceptors.request_log import RequestLog
from evershell.api.method_options import HEALTH_CHECK, HEARTBEAT
from evershell.core.errors import UnavailableError
from evershell.telemetry.metrics import Metrics
from tests.support.faulty_store import FaultyStore
from tests.support.waiting import eventually_async
from tests.support.world import ORG, World
from tests.wire.api.running import INTERNAL, Running, agent_bearer, bearer

UNKNOWN = messages.GetWorkspaceRequest(workspace_id="ws_unknown")


@pytest.fixture
def log() -> Iterator[LogCapture]:
    """Captures what this process logs."""
    capture = LogCapture()
    structlog.configure(processors=[capture])
    yield capture
    structlog.reset_defaults()


async def lines_of_calls(log: LogCapture, count: int) -> list[dict[str, Any]]:
    """Waits for the lines of `count` calls, because each is written just after the reply."""

    def found() -> list[dict[str, Any]]:
        return [dict(line) for line in log.entries if line["event"] == "rpc_completed"]

    await eventually_async(lambda: len(found()) >= count)
    return found()


def most_since(began: float) -> float:
    """The most lines that the limit of 20 a second allows from `began`, in loop time, until now."""
    return 20 * (1 + asyncio.get_running_loop().time() - began) + 1


async def test_a_call_has_one_line(server: Running, world: World, log: LogCapture) -> None:
    idle = await world.add()
    await server.stub.GetWorkspace(
        messages.GetWorkspaceRequest(workspace_id=idle.id), metadata=bearer(x_request_id="req_1")
    )
    await server.fails(server.stub.GetWorkspace(UNKNOWN, metadata=bearer()))
    done, refused = await lines_of_calls(log, 2)
    assert done.pop("duration_ms") >= 0
    assert done == {
        "event": "rpc_completed",
        "log_level": "info",
        "outcome": "ok",
        "method": "/evershell.workspace.v1.WorkspaceService/GetWorkspace",
        "request_id": "req_1",
        "org_id": ORG,
        "actor_id": "key_full_access",
    }
    assert refused["outcome"] == "workspace_not_found"


async def test_a_line_does_not_delay_the_reply(log: LogCapture) -> None:
    async def reply(call: Call) -> str:
        return "reply"

    method = Method("evershell.workspace.v1.WorkspaceService", "GetTask", bytes, is_stream=False)
    handler = RequestLog(Metrics()).wrap(method, reply)
    call = Call(context=Mock(), metadata={}, request_id="req_1", is_rest=False)
    assert await handler(call) == "reply"
    assert not log.entries
    await lines_of_calls(log, 1)


async def test_heartbeats_and_health_checks_have_a_line_only_if_they_fail(
    store: FaultyStore, server: Running, world: World, log: LogCapture
) -> None:
    agent = agent_bearer((await world.add()).id)
    await server.raw(HEARTBEAT, agent, b"")
    await server.raw(HEALTH_CHECK)
    store.error = UnavailableError
    await server.raw(HEARTBEAT, agent, b"")
    (line,) = await lines_of_calls(log, 1)
    assert (line["method"], line["outcome"]) == (HEARTBEAT, "unavailable")


@pytest.mark.parametrize(
    ("metadata", "outcome", "burst"),
    [
        (bearer("sk_bad"), "unauthenticated", 10),
        ((), "unauthenticated", 10),
        (bearer(), "workspace_not_found", 20),
    ],
    ids=["bad key", "no key", "repeated mistake"],
)
async def test_lines_of_refused_calls_are_limited(
    server: Running,
    log: LogCapture,
    metadata: tuple[tuple[str, str], ...],
    outcome: str,
    burst: int,
) -> None:
    began = asyncio.get_running_loop().time()
    for _ in range(10):
        await asyncio.gather(
            *(server.fails(server.stub.GetWorkspace(UNKNOWN, metadata=metadata)) for _ in range(50))
        )
    found = await lines_of_calls(log, burst)
    assert {line["outcome"] for line in found} == {outcome}
    assert len(found) <= most_since(began)
    # A moment later the next line is written, with the number of lines left out.
    await asyncio.sleep(0.3)
    await server.fails(server.stub.GetWorkspace(UNKNOWN, metadata=metadata))

    def counted() -> int:
        lines = [line for line in log.entries if line["event"] == "rpc_completed"]
        return len(lines) + sum(int(line.get("repeats_left_out", 0)) for line in lines)

    await eventually_async(lambda: counted() >= 501)
    assert counted() == 501


@pytest.mark.parametrize(
    ("error", "outcome"), [(UnavailableError, "unavailable"), (KeyError, "internal")]
)
async def test_every_failure_of_the_service_is_logged(
    store: FaultyStore, server: Running, log: LogCapture, error: type[Exception], outcome: str
) -> None:
    store.error = error
    began = asyncio.get_running_loop().time()
    for _ in range(100):
        await server.fails(server.stub.GetWorkspace(UNKNOWN, metadata=bearer()))
    assert {line["outcome"] for line in await lines_of_calls(log, 100)} == {outcome}
    # A traceback is long, and a caller who has found a defect can trigger it repeatedly.
    tracebacks = sum(line["event"] == "unexpected_error" for line in log.entries)
    assert (0 < tracebacks <= most_since(began)) if outcome == "internal" else tracebacks == 0


async def test_the_version_of_an_agent_is_logged_unless_it_is_fenced(
    server: Running, world: World, log: LogCapture
) -> None:
    workspace = await world.add(epoch=2)
    request = RegisterRequest(address="127.0.0.1:1", version="1" * 1_000).SerializeToString()
    for epoch in (workspace.epoch - 1, workspace.epoch):
        await server.raw(INTERNAL + "Register", agent_bearer(workspace.id, epoch), request)
    (line,) = [each for each in log.entries if each["event"] == "agent_registered"]
    assert (line["epoch"], line["version"]) == (workspace.epoch, "1" * 64)
