"""An agent for the bench, which acknowledges every cancellation of any workspace.

A real agent serves one workspace. This one stands for thousands of them, so that each call of a
window can cancel a task of its own. It accepts every token. The service signals it as it signals a
real agent, and the floor calls it without a token.

`python -m tests.bench.servers.agent PORT`
"""

import sys
from typing import Any

import grpc
import uvloop
from evershell.agent.v1.agent_service_pb2 import CancelTaskResponse

# The floor calls it with an empty message too.
METHOD = "/evershell.agent.v1.AgentService/CancelTask"
_ACKNOWLEDGED = CancelTaskResponse(known=True).SerializeToString()


async def serve_method(path: str, call: Any, port: int) -> grpc.aio.Server:
    """Serves one unary method on loopback, bytes in and bytes out."""
    service, method = path.removeprefix("/").split("/")
    handler: grpc.RpcMethodHandler[Any, Any] = grpc.unary_unary_rpc_method_handler(call)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service, {method: handler}),)
    )
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    return server


async def _cancel_task(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
    return _ACKNOWLEDGED


async def _serve(port: int) -> None:
    server = await serve_method(METHOD, _cancel_task, port)
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
