"""The channels to agents, kept between calls."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeAlias, cast

import grpc.aio
from evershell.agent.v1 import agent_service_pb2_grpc

from evershell.pod.tls import Connector, TlsIdentity, agent_name

_OPTIONS = (
    # Agents are on this network, so a proxy that the environment names is not used.
    ("grpc.enable_http_proxy", 0),
    # gRPC's default of 1 s and more would leave no time in the budget for a reconnection to an
    # agent that has recovered.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)

# The address, host:port, and the name in the certificate. Another agent may listen on the address
# later. Without TLS, the name is empty.
Key: TypeAlias = tuple[str, str]

# Exists only in the type stubs. At run time, AgentServiceStub serves asynchronous calls too.
Stub: TypeAlias = "agent_service_pb2_grpc.AgentServiceAsyncStub"


class _FirstUse:
    """A channel for a stub that prepares a method when it is first called.

    To prepare all methods takes as long as half of a call, and most channels are used for one.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    def unary_unary(self, method: str, **options: Any) -> Callable[..., Any]:
        """Called by the stub for each method."""
        prepared: list[Any] = []

        def call(*arguments: Any, **named: Any) -> Any:
            if not prepared:
                prepared.append(self._channel.unary_unary(method, **options))
            return prepared[0](*arguments, **named)

        return call


class AgentChannel:
    """A channel to an agent and its stub. It counts the calls in flight, as a context manager."""

    def __init__(
        self, key: Key, channel: grpc.aio.Channel, on_idle: Callable[["AgentChannel"], None]
    ) -> None:
        """`on_idle` is called when the last call in flight has ended."""
        self.key = key
        self.calls_in_flight = 0
        self._on_idle = on_idle
        self._channel = channel
        self._stub: Stub = agent_service_pb2_grpc.AgentServiceStub(
            cast(grpc.aio.Channel, _FirstUse(channel))
        )

    def __enter__(self) -> "Stub":
        self.calls_in_flight += 1
        return self._stub

    def __exit__(self, *exception: object) -> None:
        self.calls_in_flight -= 1
        if not self.calls_in_flight:
            self._on_idle(self)

    async def close(self) -> None:
        """Closes the channel. Calls in flight fail."""
        await self._channel.close()


class AgentChannels:
    """Keeps at most `limit` channels: the ones that were used last.

    A channel that is no longer kept is closed when its calls in flight have ended. There may
    therefore be more open channels than `limit`, at most by the number of calls in flight.
    """

    def __init__(self, limit: int, tls: TlsIdentity | None = None) -> None:
        self._limit = limit
        self._connector = Connector(tls)
        # In the order of their last use.
        self._channels: OrderedDict[Key, AgentChannel] = OrderedDict()
        self._closing: set[asyncio.Task[None]] = set()

    def key(self, address: str, workspace_id: str, epoch: int) -> Key:
        """The key of the channel to the agent of this workspace and epoch."""
        return (address, agent_name(workspace_id, epoch) if self._connector.has_tls else "")

    def channel(self, key: Key) -> AgentChannel:
        """The channel to this agent. Enter it at once, or it may be closed."""
        channel = self._channels.get(key)
        if channel is not None:
            self._channels.move_to_end(key)
            return channel
        if len(self._channels) >= self._limit:
            self.forget(next(iter(self._channels)))
        opened = self._connector.open(*key, _OPTIONS)
        channel = self._channels[key] = AgentChannel(key, opened, self._close_unless_kept)
        return channel

    def forget(self, key: Key) -> None:
        """No longer keeps the channel, if there is one."""
        channel = self._channels.pop(key, None)
        if channel is not None and not channel.calls_in_flight:
            self._close(channel)

    async def aclose(self) -> None:
        """Closes every channel. Calls in flight fail."""
        channels = list(self._channels.values())
        self._channels.clear()
        await asyncio.gather(*(channel.close() for channel in channels), *self._closing)

    def _close_unless_kept(self, channel: AgentChannel) -> None:
        if self._channels.get(channel.key) is not channel:
            self._close(channel)

    def _close(self, channel: AgentChannel) -> None:
        closing = asyncio.create_task(channel.close())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
