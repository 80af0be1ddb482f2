"""Tells whether a program is alive, by the gRPC health service.

Its answer comes from the event loop. A program that is frozen or blocked does not answer, although
the kernel still accepts connections for it.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

# SERVING while the process answers, even without a database, until it drains.
LIVENESS = "liveness"


@asynccontextmanager
async def liveness_served(address: str) -> AsyncIterator[None]:
    """Serves LIVENESS at host:port or unix:/path inside the context.

    Raises RuntimeError if the address cannot be used.
    """
    servicer, server = health.aio.HealthServicer(), grpc.aio.server()
    await servicer.set(LIVENESS, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    server.add_insecure_port(address)
    await server.start()
    try:
        yield
    finally:
        await server.stop(grace=0)


async def is_live(address: str) -> bool:
    """Whether the program at the address is alive. Waits for an answer until it is cancelled."""
    request = health_pb2.HealthCheckRequest(service=LIVENESS)
    # A channel of its own, because a channel whose connection was refused waits before it retries.
    async with grpc.aio.insecure_channel(address) as channel:
        try:
            answer = await health_pb2_grpc.HealthStub(channel).Check(request)
        except grpc.aio.AioRpcError:
            return False
    serving: bool = answer.status == health_pb2.HealthCheckResponse.SERVING
    return serving
