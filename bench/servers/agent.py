"""An agent for the bench, which acknowledges every cancellation of any workspace.

A real agent serves one workspace. This agent stands for thousands of agents, so that each call of a
window can cancel a different task. It accepts every token. The service signals it like a real
agent. The floor (floor.py) calls METHOD without a token.

`python -m bench.servers.agent PORT [COUNT]` listens at COUNT addresses, by default at one.
"""

import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
import uvloop
from evershell.agent.v1.agent_service_pb2 import Acknowledgement, Signal
from evershell.agent.v1.agent_service_pb2_grpc import (
    AgentServiceServicer,
    add_AgentServiceServicer_to_server,
)

METHOD = "/bench.Agent/Empty"
# How many agents the bench simulates: fewer than the streams that a worker can keep open.
AGENTS = 400


class _AgentService(AgentServiceServicer):
    async def Signals(
        self, request_iterator: AsyncIterator[Signal], context: Any
    ) -> AsyncIterator[Acknowledgement]:
        async for signal in request_iterator:
            yield Acknowledgement(id=signal.id, known=True, task_id=signal.cancel_task.task_id)


def addresses(port: int, count: int) -> list[str]:
    """`count` different loopback addresses with this port. The first one is 127.0.0.1."""
    return [f"127.0.{number // 250}.{number % 250 + 1}:{port}" for number in range(count)]


async def serve_method(
    path: str,
    call: Any,
    port: int,
    servicer: AgentServiceServicer | None = None,
    count: int = 1,
) -> grpc.aio.Server:
    """Serves the servicer, and one unary method that takes and returns bytes, on loopback."""
    service, method = path.removeprefix("/").split("/")
    handler: grpc.RpcMethodHandler[Any, Any] = grpc.unary_unary_rpc_method_handler(call)
    server = grpc.aio.server()
    if servicer is not None:
        add_AgentServiceServicer_to_server(servicer, server)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service, {method: handler}),)
    )
    for address in addresses(port, count):
        server.add_insecure_port(address)
    await server.start()
    return server


async def _empty(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
    return b""


async def _serve(port: int, count: int = 1) -> None:
    service = _AgentService()  # type: ignore[abstract] # the bench reads no iteration
    server = await serve_method(METHOD, _empty, port, service, count)
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(_serve(*map(int, sys.argv[1:])))
