"""The server handles the heartbeats of idle agents together."""

import asyncio
from types import SimpleNamespace

import pytest
from evershell.agent.v1.runtime_service_pb2 import HeartbeatRequest, HeartbeatResponse

from evershell.api import runtime_servicer
from tests.support.world import World
from tests.wire.api.running import INTERNAL, Running, agent_bearer

GATHER_SECONDS = 0.5


class Clock:
    """The clock of the event loop, which the test sets. Records until when each heartbeat waits."""

    def __init__(self) -> None:
        self.now = 100.0
        self.waits: list[float] = []

    def time(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.waits.append(self.now + seconds)
        await asyncio.sleep(0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    fake = SimpleNamespace(sleep=clock.sleep, get_running_loop=lambda: clock)
    monkeypatch.setattr(runtime_servicer, "asyncio", fake)
    monkeypatch.setattr(runtime_servicer, "_GATHER_SECONDS", GATHER_SECONDS)
    return clock


async def beat(server: Running, workspace_id: str, task_id: str = "") -> HeartbeatResponse:
    request = HeartbeatRequest(task_id=task_id).SerializeToString()
    reply = await server.raw(INTERNAL + "Heartbeat", agent_bearer(workspace_id), request)
    assert isinstance(reply, bytes)
    return HeartbeatResponse.FromString(reply)


async def test_heartbeats_of_idle_agents_are_handled_together(
    server: Running, world: World, clock: Clock
) -> None:
    ids = [(await world.add()).id for _ in range(10)]
    for number, each in enumerate(ids):
        clock.now = 100.01 + number * GATHER_SECONDS / 5
        assert not (await beat(server, each)).directive.fenced
    # All heartbeats that arrive between two moments wait for the later moment.
    assert clock.waits == pytest.approx([100.5] * 5 + [101.0] * 5)


async def test_the_heartbeat_of_a_busy_agent_does_not_wait(
    server: Running, world: World, clock: Clock
) -> None:
    busy, running = await world.add_busy()
    await beat(server, busy.id, running.id)
    assert clock.waits == []
