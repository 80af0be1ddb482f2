"""Each way in which an agent, or the network to it, can end a stream or a connection.

A caller whose cancellation is recorded gets nothing worse than `agent_unreachable`.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import grpc
import pytest
from evershell.agent.v1.agent_service_pb2 import Acknowledgement

from evershell.core.errors import AgentUnreachableError
from evershell.fleet.agent_client import AgentClient
from tests.support.ports import free_ports
from tests.support.waiting import eventually_async
from tests.unit.fleet.fake_agent import TASK, Context, FakeAgent, cancel, never, workspace_at

_SERVICE = "evershell.agent.v1.AgentService"
_ACKNOWLEDGED = Acknowledgement(id=1, known=True).SerializeToString()
# Too large for gRPC to send completely before the agent reads.
_LARGE = replace(TASK, description="x" * 32_000_000)
Signals = Callable[[AsyncIterator[bytes], Context], AsyncIterator[bytes]]


async def flood(requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
    """Reads nothing, so that a large signal is still being written when the stream is ended."""
    while True:
        yield _ACKNOWLEDGED


async def end(requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
    return
    yield b""


async def end_after_the_signal(
    requests: AsyncIterator[bytes], context: Context
) -> AsyncIterator[bytes]:
    async for _ in requests:
        return
    yield b""


async def refuse(requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
    await context.abort(grpc.StatusCode.PERMISSION_DENIED, "no")
    yield b""


async def cancel_the_stream(
    requests: AsyncIterator[bytes], context: Context
) -> AsyncIterator[bytes]:
    await context.abort(grpc.StatusCode.CANCELLED, "no")
    yield b""


async def fail(requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
    raise ValueError("a defect")
    yield b""


async def send_nonsense(requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
    async for _ in requests:
        yield b"\xff\xff\xff"


async def send_too_much(requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
    async for _ in requests:
        yield b"\x00" * 300_000


@pytest.fixture
async def serve() -> AsyncIterator[Callable[[Signals], Any]]:
    """Yields a function that starts an agent with the given Signals and returns its address."""
    servers: list[grpc.aio.Server] = []

    async def start(signals: Signals) -> str:
        server = grpc.aio.server()
        handler: Any = grpc.stream_stream_rpc_method_handler(signals)
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(_SERVICE, {"Signals": handler}),)
        )
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        servers.append(server)
        return f"127.0.0.1:{port}"

    yield start
    for server in servers:
        await server.stop(0)


@pytest.mark.parametrize("task", [TASK, _LARGE], ids=["written", "being_written"])
@pytest.mark.parametrize(
    "signals",
    [
        end,
        end_after_the_signal,
        refuse,
        cancel_the_stream,
        fail,
        send_nonsense,
        send_too_much,
        flood,
    ],
)
@pytest.mark.usefixtures("one_attempt")
async def test_an_agent_that_ends_the_stream_is_unreachable(
    client: AgentClient, serve: Callable[[Signals], Any], signals: Signals, task: Any
) -> None:
    workspace = workspace_at(await serve(signals))
    try:
        # A flood may acknowledge the signal before the stream is ended.
        await asyncio.wait_for(client.start_task(workspace, task), 60)
    except AgentUnreachableError:
        return
    assert signals is flood


@pytest.mark.usefixtures("one_attempt")
async def test_an_agent_that_does_not_listen_is_unreachable(client: AgentClient) -> None:
    with pytest.raises(AgentUnreachableError):
        await cancel(client, f"127.0.0.1:{free_ports(1)[0]}")


@pytest.mark.usefixtures("one_attempt")
async def test_an_agent_whose_connection_breaks_is_unreachable(
    client: AgentClient, agent: FakeAgent
) -> None:
    agent.before = never
    call = asyncio.create_task(cancel(client, agent.address))
    await eventually_async(lambda: agent.signals)
    await agent.stop()
    with pytest.raises(AgentUnreachableError):
        await asyncio.wait_for(call, 60)


@pytest.mark.usefixtures("patient")
async def test_a_caller_who_leaves_while_its_signal_is_written_ends_no_other_call(
    client: AgentClient, agent: FakeAgent
) -> None:
    """When the caller leaves, gRPC ends the shared stream. The other signals get another stream."""
    reads_on = asyncio.Event()

    async def wait(number: int, context: Context) -> None:
        await reads_on.wait()

    agent.before = wait
    first = asyncio.create_task(cancel(client, agent.address))
    await eventually_async(lambda: agent.signals)
    workspace = workspace_at(agent.address)
    writes = asyncio.create_task(client.start_task(workspace, _LARGE))
    await asyncio.sleep(0)
    waits = asyncio.create_task(cancel(client, agent.address))
    await asyncio.sleep(0)
    writes.cancel()
    reads_on.set()
    assert all(await asyncio.wait_for(asyncio.gather(first, waits), 60))
