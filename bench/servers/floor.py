"""The floor: a gRPC server that does only the minimum that calls like CancelTask need.

Each method takes and returns bytes, without authentication, checks or a log.

| method | does |
|---|---|
| Empty | nothing |
| Select | reads one row of `bench_rows` |
| Update | updates one row of `bench_rows`, then calls an agent |
| Record | runs `record_cancellation` of floor.sql, then calls an agent |
| Stream | sends `count` messages of `size` bytes |

The floor has tables of its own, so it pays for none of the service's indexes and triggers.

The request of Select, Update and Record is an id as text. The request of Stream is `count size`.

`python -m bench.servers.floor PORT AGENT_ADDRESS DATABASE_URL`
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import uvloop
from psycopg.types.json import Jsonb
from psycopg_pool import AsyncConnectionPool

from bench.servers import agent

SERVICE = "bench.Floor"
# The size of the pool, as in a worker of the service.
_MIN_CONNECTIONS, _MAX_CONNECTIONS = 2, 10
RECORD = "SELECT record_cancellation(%s, %s, %s, %s, %s, %s, %s, %s)"
# SQL that creates the floor's schema.
SCHEMA_SQL = Path(__file__).with_name("floor.sql").read_text()
# The option with which a connection finds the floor's tables.
SEARCH_PATH = "-c search_path=bench_floor"
Context = grpc.aio.ServicerContext[Any, Any]


class Floor:
    """The methods of the floor."""

    def __init__(self, pool: AsyncConnectionPool[Any], agent_channel: grpc.aio.Channel) -> None:
        self._pool = pool
        self._signal: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = agent_channel.unary_unary(
            agent.METHOD
        )

    async def empty(self, request: bytes, context: Context) -> bytes:
        return b""

    async def select(self, request: bytes, context: Context) -> bytes:
        async with self._pool.connection() as connection:
            cursor = await connection.execute(
                "SELECT id, number FROM bench_rows WHERE id = %s",
                (request.decode(),),
                prepare=True,
                binary=True,
            )
            await cursor.fetchone()
        return b""

    async def update(self, request: bytes, context: Context) -> bytes:
        async with self._pool.connection() as connection:
            await connection.execute(
                "UPDATE bench_rows SET number = number + 1 WHERE id = %s",
                (request.decode(),),
                prepare=True,
            )
        await self._signal(b"")
        return b""

    async def record(self, request: bytes, context: Context) -> bytes:
        now = datetime.now(UTC)
        intent = {
            "requested_by": "bench",
            "credential_kind": "api_key",
            "requested_at": now.isoformat(),
            "reason": "",
        }
        async with self._pool.connection() as connection:
            cursor = await connection.execute(
                RECORD,
                (
                    "org_demo",
                    request.decode(),
                    "bench",
                    "api_key",
                    now,
                    "",
                    "floor",
                    Jsonb({"cancel": intent}),
                ),
                prepare=True,
                binary=True,
            )
            await cursor.fetchone()
        await self._signal(b"")
        return b""

    async def stream(self, request: bytes, context: Context) -> AsyncIterator[bytes]:
        count, size = map(int, request.split())
        payload = bytes(size)
        for _ in range(count):
            yield payload


async def serve(port: int, agent_address: str, database_url: str) -> None:
    """Serves the floor on loopback until the process is stopped."""
    pool: AsyncConnectionPool[Any] = AsyncConnectionPool(
        database_url,
        kwargs={"autocommit": True, "options": SEARCH_PATH},
        min_size=_MIN_CONNECTIONS,
        max_size=_MAX_CONNECTIONS,
        open=False,
    )
    async with pool, grpc.aio.insecure_channel(agent_address) as channel:
        floor = Floor(pool, channel)
        unary = grpc.unary_unary_rpc_method_handler
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Empty": unary(floor.empty),
            "Select": unary(floor.select),
            "Update": unary(floor.update),
            "Record": unary(floor.record),
            "Stream": grpc.unary_stream_rpc_method_handler(floor.stream),
        }
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        server.add_insecure_port(f"127.0.0.1:{port}")
        await server.start()
        await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), sys.argv[2], sys.argv[3]))
