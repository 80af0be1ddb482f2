"""Heartbeats that wait for the lock of their workspace, on PostgreSQL and over gRPC."""

import asyncio
from contextlib import suppress
from typing import Any

import grpc
import pytest
from evershell.agent.v1 import runtime_service_pb2 as messages
from evershell.workspace.v1 import task_pb2

from evershell.store.pool import Connection, Pool
from evershell.store.postgres_store import PostgresStore
from evershell.store.service_clock import machine_clock
from tests.support.store.examples import with_task
from tests.support.store.locks import held
from tests.support.world import World
from tests.wire.api.running import INTERNAL, agent_bearer, running


@pytest.mark.parametrize("at_once", [1, 5])
async def test_heartbeats_of_a_pod_wait_for_one_connection(
    database_url: str, pool: Pool, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent that gives up and repeats its heartbeats still uses only one connection."""
    world, store = World(), PostgresStore(pool, machine_clock)
    busy, task = await with_task(store)
    world.store = store  # type: ignore[assignment]
    phase = task_pb2.Task.Phase.model_call
    request = messages.HeartbeatRequest(task_id=task.id, phase=phase).SerializeToString()
    get, give, used, most = pool.getconn, pool.putconn, 0, 0

    async def getconn(timeout: float) -> Connection:
        nonlocal used, most
        connection = await get(timeout)
        used += 1
        most = max(most, used)
        return connection

    async def putconn(connection: Connection) -> None:
        nonlocal used
        used -= 1
        await give(connection)

    monkeypatch.setattr(pool, "getconn", getconn)
    monkeypatch.setattr(pool, "putconn", putconn)
    async with running(world) as server, held(database_url, busy.id) as queued:
        beat: Any = server.channel.unary_unary(INTERNAL + "Heartbeat")

        async def call() -> None:
            with suppress(grpc.aio.AioRpcError):
                await beat(request, metadata=agent_bearer(busy.id), timeout=2)

        beats = asyncio.gather(*(call() for _ in range(at_once)))
        await queued(1)
        for _ in range(2):
            await beats
            beats = asyncio.gather(*(call() for _ in range(at_once)))
        await beats
    assert most == 1
