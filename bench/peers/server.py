"""What the servers of the peers share: settings, connections, and clients that signal the agent."""

import sys
from abc import ABC, abstractmethod
from typing import Any

import grpc
import httpx
import uvicorn
from pydantic_settings import BaseSettings
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from bench.peers.agent import METHOD, TOKEN

_ATTEMPTS = 3
_ATTEMPT_SECONDS = 0.5
# More than the number of callers, so that no signal waits for a connection.
_MAX_CONNECTIONS = 128


class PeerSettings(BaseSettings):
    """The settings of a peer, each from the environment variable of the same name."""

    database_url: str
    # The number of connections to the database.
    pool_size: int
    agent_url: str
    agent_grpc_address: str
    # The SHA-256 of the API key, for a peer that has no table of API keys.
    api_key_sha256: str


def create_engine(settings: PeerSettings) -> AsyncEngine:
    """An engine on asyncpg that keeps `pool_size` connections open, and never opens more."""
    url = settings.database_url.replace("postgresql:", "postgresql+asyncpg:", 1)
    return create_async_engine(url, pool_size=settings.pool_size, max_overflow=0)


def serve(app: Any) -> None:
    """Serves the application with uvicorn, on the port that is the argument of the program."""
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=int(sys.argv[1]),
        loop="uvloop",
        http="httptools",
        log_level="warning",
        access_log=False,
    )


class AgentUnreachableError(Exception):
    """All attempts to signal the agent have failed."""


class _AgentClient(ABC):
    """Signals an agent."""

    async def cancel(self, task_id: str) -> None:
        """Signals the cancellation of a task. Raises AgentUnreachableError after 3 attempts."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                await self._send(task_id)
            except (httpx.HTTPError, grpc.aio.AioRpcError) as error:
                if attempt == _ATTEMPTS:
                    raise AgentUnreachableError(task_id) from error
            else:
                return

    @abstractmethod
    async def _send(self, task_id: str) -> None: ...


class HttpAgentClient(_AgentClient):
    """Signals over HTTP/1.1, on connections that are kept open."""

    def __init__(self, agent_url: str) -> None:
        self._client = httpx.AsyncClient(
            base_url=agent_url,
            headers={"Authorization": f"Bearer {TOKEN}"},
            timeout=_ATTEMPT_SECONDS,
            limits=httpx.Limits(
                max_connections=_MAX_CONNECTIONS, max_keepalive_connections=_MAX_CONNECTIONS
            ),
            trust_env=False,
        )

    async def _send(self, task_id: str) -> None:
        response = await self._client.post(f"/tasks/{task_id}/cancel")
        response.raise_for_status()

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.aclose()


class GrpcAgentClient(_AgentClient):
    """Signals over gRPC, on one channel."""

    def __init__(self, address: str) -> None:
        self._address = address

    async def open(self) -> None:
        """Opens the channel, which belongs to the running event loop."""
        self._channel = grpc.aio.insecure_channel(self._address)
        self._cancel: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(
            METHOD
        )

    async def _send(self, task_id: str) -> None:
        await self._cancel(
            task_id.encode(),
            timeout=_ATTEMPT_SECONDS,
            metadata=(("authorization", f"Bearer {TOKEN}"),),
        )

    async def close(self) -> None:
        """Closes the channel."""
        await self._channel.close()
