"""The clients with which the servers of the peers signal an agent."""

import grpc
import httpx

from tests.bench.peers.agent import METHOD, TOKEN

_ATTEMPTS = 3
_ATTEMPT_SECONDS = 0.5
# More than there are callers, so that no signal waits for a connection.
_MAX_CONNECTIONS = 128


class AgentUnreachableError(Exception):
    """The agent did not take the signal, in any of the attempts."""


class AgentClient:
    """Signals agents over HTTP/1.1, on connections that are kept open."""

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

    async def cancel(self, task_id: str) -> None:
        """Signals the cancellation of a task. Raises AgentUnreachableError after 3 attempts."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                response = await self._client.post(f"/tasks/{task_id}/cancel")
                response.raise_for_status()
            except httpx.HTTPError as error:
                if attempt == _ATTEMPTS:
                    raise AgentUnreachableError(task_id) from error
            else:
                return

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.aclose()


class GrpcAgentClient:
    """Signals agents over gRPC, on one channel, as the service does."""

    def __init__(self, address: str) -> None:
        self._address = address

    async def open(self) -> None:
        """Opens the channel, which belongs to the running event loop."""
        self._channel = grpc.aio.insecure_channel(self._address)
        self._cancel: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(
            METHOD
        )

    async def cancel(self, task_id: str) -> None:
        """Signals the cancellation of a task. Raises AgentUnreachableError after 3 attempts."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                await self._cancel(
                    task_id.encode(),
                    timeout=_ATTEMPT_SECONDS,
                    metadata=(("authorization", f"Bearer {TOKEN}"),),
                )
            except grpc.aio.AioRpcError as error:
                if attempt == _ATTEMPTS:
                    raise AgentUnreachableError(task_id) from error
            else:
                return

    async def close(self) -> None:
        """Closes the channel."""
        await self._channel.close()
