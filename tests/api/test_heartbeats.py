"""Heartbeats on the server: those of idle agents are handled together."""

import asyncio

import pytest
from evershell.agent.v1.runtime_service_pb2 import HeartbeatRequest, HeartbeatResponse

from evershell.server.api import runtime_servicer
from evershell.server.core.ports import Leased
from tests.api.running import INTERNAL, Running, agent_bearer
from tests.support.world import World

GATHER_SECONDS = 0.5


@pytest.fixture
def renewals(world: World, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float]]:
    """The workspace and the time of each renewal."""
    monkeypatch.setattr(runtime_servicer, "_GATHER_SECONDS", GATHER_SECONDS)
    noted: list[tuple[str, float]] = []
    renew = world.store.renew_lease

    async def note(workspace_id: str, epoch: int, lease_seconds: float) -> Leased | None:
        noted.append((workspace_id, asyncio.get_running_loop().time()))
        return await renew(workspace_id, epoch, lease_seconds)

    world.store.renew_lease = note  # type: ignore[method-assign]
    return noted


async def beat(server: Running, workspace_id: str, task_id: str = "") -> HeartbeatResponse:
    request = HeartbeatRequest(task_id=task_id).SerializeToString()
    reply = await server.raw(INTERNAL + "Heartbeat", agent_bearer(workspace_id), request)
    assert isinstance(reply, bytes)
    return HeartbeatResponse.FromString(reply)


async def test_heartbeats_of_idle_agents_are_handled_together(
    server: Running, world: World, renewals: list[tuple[str, float]]
) -> None:
    ids = [(await world.add()).id for _ in range(10)]
    loop = asyncio.get_running_loop()
    # Just after one of the moments, so that all calls arrive before the next one.
    await asyncio.sleep(-loop.time() % GATHER_SECONDS)
    replies = await asyncio.gather(*(beat(server, each) for each in ids))
    assert not any(reply.directive.fenced for reply in replies)
    times = [time for _, time in renewals]
    assert sorted(each for each, _ in renewals) == sorted(ids)
    assert max(times) - min(times) < GATHER_SECONDS / 5
    assert min(times) % GATHER_SECONDS < GATHER_SECONDS / 2


async def test_the_heartbeat_of_a_busy_agent_does_not_wait(
    server: Running, world: World, renewals: list[tuple[str, float]]
) -> None:
    busy, running = await world.add_busy()
    loop = asyncio.get_running_loop()
    await asyncio.sleep(-loop.time() % GATHER_SECONDS)
    began = loop.time()
    await beat(server, busy.id, running.id)
    assert loop.time() - began < GATHER_SECONDS / 2
    assert [each for each, _ in renewals] == [busy.id]
