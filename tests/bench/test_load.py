"""The load generator, against a gRPC server of the library."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import repeat
from typing import Any

import grpc
import pytest

from tests.bench import load
from tests.bench.http2 import Connection, message

OK, NOT_FOUND, UNIMPLEMENTED = 0, 5, 12


class Server:
    """A server in a thread of its own, because the load generator blocks."""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        self.metadata: set[tuple[str, str]] = set()
        self.address = ""
        self._started = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),))

    def __enter__(self) -> "Server":
        self._thread.start()
        assert self._started.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        self._loop.close()

    async def _run(self) -> None:
        self._stop = asyncio.Event()
        async with self._serving() as port:
            self.address = f"127.0.0.1:{port}"
            self._started.set()
            await self._stop.wait()

    @asynccontextmanager
    async def _serving(self) -> AsyncIterator[int]:
        server = grpc.aio.server()
        unary = grpc.unary_unary_rpc_method_handler
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Echo": unary(self._echo),
            "Refuse": unary(self._refuse),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Test", handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            yield port
        finally:
            await server.stop(None)

    async def _echo(self, request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        self.received.append(request)
        self.metadata |= {(key, str(value)) for key, value in context.invocation_metadata() or ()}
        return request

    async def _refuse(self, request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        context.set_trailing_metadata((("number", str(len(self.received))),))
        self.received.append(request)
        await context.abort(grpc.StatusCode.NOT_FOUND, "there is none")


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.mark.parametrize(("callers", "connections"), [(1, 1), (16, 1), (16, 3)])
def test_each_body_is_sent_once(server: Server, callers: int, connections: int) -> None:
    opened = [
        Connection(server.address, "/Test/Echo", [("authorization", "Bearer x")])
        for _ in range(connections)
    ]
    bodies = [message(str(number).encode()) for number in range(2_000)]
    calls = load.run(opened, bodies, callers, seconds=60)
    for connection in opened:
        connection.close()
    assert calls.statuses == {OK: 2_000}
    assert sorted(map(int, server.received)) == list(range(2_000))
    assert ("authorization", "Bearer x") in server.metadata
    assert all(nanoseconds > 0 for nanoseconds in calls.nanoseconds)


def test_more_is_sent_than_the_window_of_a_connection_allows_at_first(server: Server) -> None:
    connection = Connection(server.address, "/Test/Echo")
    calls = load.run([connection], [message(bytes(10_000))] * 100, callers=50, seconds=60)
    connection.close()
    assert calls.statuses == {OK: 100}
    assert {len(body) for body in server.received} == {10_000}


def test_a_run_ends_with_its_time(server: Server) -> None:
    connection = Connection(server.address, "/Test/Echo")
    calls = load.run([connection], repeat(message(b"")), callers=4, seconds=0.1)
    connection.close()
    assert 0.1 <= calls.seconds < 5
    assert calls.count == len(server.received)


def test_the_statuses_of_errors_are_counted(server: Server) -> None:
    for method, status in (("Refuse", NOT_FOUND), ("Unknown", UNIMPLEMENTED)):
        connection = Connection(server.address, f"/Test/{method}")
        calls = load.run([connection], [message(b"")] * 150, callers=3, seconds=60)
        connection.close()
        assert calls.statuses == {status: 150}


def test_a_closed_server_is_an_error() -> None:
    with Server() as server:
        connection = Connection(server.address, "/Test/Echo")
        assert load.run([connection], [message(b"")], 1, 60).count == 1
    with pytest.raises(OSError, match="clos"):
        load.run([connection], [message(b"")], 1, 60)
    connection.close()
