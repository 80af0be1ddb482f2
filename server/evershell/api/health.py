"""The health service.

The answer comes from the event loop. A program that is frozen or blocked does not answer, although
the kernel still accepts connections for it.
"""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]

# A client whose last check is older than this is assumed to have stopped checking. The edge checks
# every second.
_FORGET_SECONDS = 1.5


class Health(health.aio.HealthServicer):  # type: ignore[misc] # the package has no types
    """Remembers which peers check health, because a peer sends calls until it sees NOT_SERVING."""

    def __init__(self) -> None:
        super().__init__()
        # The peers that have not seen NOT_SERVING, and when each of them last asked.
        self._unaware: dict[str, float] = {}
        self._is_draining = False

    async def Check(
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> health_pb2.HealthCheckResponse:
        if request.service == LIVENESS:
            # A liveness probe sends no other calls, so a drain does not wait for it.
            pass
        elif self._is_draining:
            self._unaware.pop(context.peer(), None)
        else:
            self._forget()
            self._unaware[context.peer()] = time.monotonic()
        response: health_pb2.HealthCheckResponse = await super().Check(request, context)
        return response

    async def List(
        self, request: health_pb2.HealthListRequest, context: Context
    ) -> health_pb2.HealthListResponse:
        """Lists the status of every service. The base class does not implement this method."""
        statuses = {
            name: health_pb2.HealthCheckResponse(status=status)
            for name, status in self._server_status.items()
        }
        return health_pb2.HealthListResponse(statuses=statuses)

    async def enter_graceful_shutdown(self) -> None:
        """Sets every service to NOT_SERVING. Later changes of a status have no effect."""
        self._is_draining = True
        await super().enter_graceful_shutdown()

    def is_drain_known(self) -> bool:
        """Whether all peers that check regularly have seen NOT_SERVING."""
        self._forget()
        return not self._unaware

    def _forget(self) -> None:
        since = time.monotonic() - _FORGET_SECONDS
        self._unaware = {peer: asked for peer, asked in self._unaware.items() if asked > since}


# A service name whose status is SERVING until the process drains, even without a database.
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
