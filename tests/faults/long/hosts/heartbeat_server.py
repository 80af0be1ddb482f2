"""A worker that answers every heartbeat.

    python -m tests.faults.long.hosts.heartbeat_server ADDRESS

Prints a line when it listens.
"""

import asyncio
import sys
from typing import Any

import grpc.aio
from evershell.agent.v1 import runtime_service_pb2, runtime_service_pb2_grpc


class Heartbeats(runtime_service_pb2_grpc.RuntimeServiceServicer):
    """Answers Heartbeat."""

    async def Heartbeat(self, request: Any, context: Any) -> runtime_service_pb2.HeartbeatResponse:
        return runtime_service_pb2.HeartbeatResponse()


async def main(address: str) -> None:
    """Serves until the process is killed."""
    server = grpc.aio.server()
    runtime_service_pb2_grpc.add_RuntimeServiceServicer_to_server(Heartbeats(), server)  # type: ignore[abstract]
    server.add_insecure_port(address)
    await server.start()
    print("listening", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
