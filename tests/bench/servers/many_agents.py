"""Agents for the bench that acknowledge every cancellation, each at an address of its own.

Writes the id of each task that is signalled, and the time (seconds since 1970), as lines to
standard output. The first line has the number of agents that listen.

`python -m tests.bench.servers.many_agents PORT COUNT`: the agents listen on 127.1.0.0 and the next
addresses, all of them on this port.
"""

import asyncio
import sys
import time
from typing import Any

import grpc
import uvloop
from evershell.agent.v1.agent_service_pb2 import CancelTaskRequest, CancelTaskResponse

from tests.bench.servers.agent import METHOD

_ACKNOWLEDGED = CancelTaskResponse(known=True).SerializeToString()


def address(number: int, port: int) -> str:
    """The address of the agent with this number."""
    return f"127.1.{number // 256}.{number % 256}:{port}"


async def _cancel_task(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
    task_id = CancelTaskRequest.FromString(request).task_id
    sys.stdout.write(f"{task_id} {time.time():.6f}\n")
    return _ACKNOWLEDGED


async def serve(port: int, count: int) -> None:
    """Serves until the process is stopped."""
    server = grpc.aio.server()
    service, method = METHOD.removeprefix("/").split("/")
    handler: grpc.RpcMethodHandler[Any, Any] = grpc.unary_unary_rpc_method_handler(_cancel_task)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service, {method: handler}),)
    )
    for number in range(count):
        server.add_insecure_port(address(number, port))
    await server.start()
    sys.stdout.write(f"{count}\n")
    while True:
        sys.stdout.flush()
        await asyncio.sleep(0.05)


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), int(sys.argv[2])))
