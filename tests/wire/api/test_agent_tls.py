"""AGENT_TLS at a worker: which connections reach RuntimeService, and which do not."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import pytest
from evershell.agent.v1.runtime_service_pb2 import HeartbeatResponse

from evershell.pod.tls import CONTROL_PLANE, Connector, TlsIdentity
from tests.support.agent_tls import Certificates, certificates
from tests.support.world import World
from tests.wire.api.running import (
    INTERNAL,
    PUBLIC,
    Metadata,
    Running,
    agent_bearer,
    bearer,
    running,
)

HEARTBEAT = INTERNAL + "Heartbeat"
OK, UNAUTHENTICATED = grpc.StatusCode.OK, grpc.StatusCode.UNAUTHENTICATED
# The handshake has failed.
REFUSED = grpc.StatusCode.UNAVAILABLE


@dataclass
class TlsServer:
    """A worker with a listener for agents, and the agent of a workspace in epoch 2."""

    running: Running
    certificates: Certificates
    workspace_id: str

    @property
    def own(self) -> TlsIdentity:
        return self.certificates.agent(self.workspace_id, 2)

    @property
    def token(self) -> Metadata:
        return agent_bearer(self.workspace_id, 2)

    async def heartbeat(self, identity: TlsIdentity | None, token: Metadata) -> grpc.StatusCode:
        """The status of a heartbeat on the agents' listener."""
        return await self.call(identity, HEARTBEAT, token)

    async def call(
        self, identity: TlsIdentity | None, method: str, metadata: Metadata
    ) -> grpc.StatusCode:
        address = f"127.0.0.1:{self.running.server.agent_port}"
        async with Connector(identity).open(address, CONTROL_PLANE, ()) as channel:
            return await code_of(channel, method, metadata)


async def code_of(channel: grpc.aio.Channel, method: str, metadata: Metadata) -> grpc.StatusCode:
    call: Any = channel.unary_unary(method)
    code: grpc.StatusCode = await call(b"", metadata=metadata).code()
    return code


@pytest.fixture
async def server() -> AsyncIterator[TlsServer]:
    async with serving(certificates()) as server:
        yield server


@asynccontextmanager
async def serving(of: Certificates) -> AsyncIterator[TlsServer]:
    world = World()
    workspace = await world.add(epoch=2)
    async with running(world, agent_tls=of.control_plane) as server:
        yield TlsServer(server, of, workspace.id)


async def test_an_agent_calls_with_its_own_certificate_and_token(server: TlsServer) -> None:
    address = f"127.0.0.1:{server.running.server.agent_port}"
    async with Connector(server.own).open(address, CONTROL_PLANE, ()) as channel:
        call: Any = channel.unary_unary(HEARTBEAT)
        reply = HeartbeatResponse.FromString(await call(b"", metadata=server.token))
        assert reply.directive.lease_ms and not reply.directive.fenced


@pytest.mark.parametrize(
    ("stranger", "expected"),
    [
        ("another workspace", UNAUTHENTICATED),
        ("an earlier epoch", UNAUTHENTICATED),
        ("a later epoch", UNAUTHENTICATED),
        ("the control plane", REFUSED),
        ("an agent of another control plane", REFUSED),
        ("another control plane", REFUSED),
    ],
)
async def test_a_token_is_refused_on_a_connection_with_another_certificate(
    server: TlsServer, stranger: str, expected: grpc.StatusCode
) -> None:
    """A stranger replays a captured token over another connection."""
    strangers = server.certificates.strangers(server.workspace_id, 2, server.own.trusted)
    assert await server.heartbeat(strangers[stranger], server.token) is expected
    assert await server.heartbeat(server.own, server.token) is OK


async def test_a_certificate_without_a_token_is_refused(server: TlsServer) -> None:
    assert await server.heartbeat(server.own, ()) is UNAUTHENTICATED
    other = agent_bearer(f"{server.workspace_id}x", 2)
    assert await server.heartbeat(server.own, other) is UNAUTHENTICATED


async def test_plain_text_and_tls_without_a_certificate_are_refused(server: TlsServer) -> None:
    assert await server.heartbeat(None, server.token) is REFUSED
    address = f"127.0.0.1:{server.running.server.agent_port}"
    anonymous = grpc.ssl_channel_credentials(server.own.trusted.encode())
    options = [("grpc.ssl_target_name_override", CONTROL_PLANE)]
    async with grpc.aio.secure_channel(address, anonymous, options=options) as channel:
        assert await code_of(channel, HEARTBEAT, server.token) is REFUSED


async def test_the_listener_of_the_edge_takes_no_agents(server: TlsServer) -> None:
    assert await code_of(server.running.channel, HEARTBEAT, server.token) is UNAUTHENTICATED


async def test_the_listener_of_agents_takes_no_callers(server: TlsServer) -> None:
    method = PUBLIC + "ListWorkspaces"
    assert await server.call(server.own, method, bearer()) is UNAUTHENTICATED
    assert await code_of(server.running.channel, method, bearer()) is OK


async def test_an_agent_refuses_another_agent_in_place_of_the_control_plane() -> None:
    """The listener uses an agent's certificate. A worker's certificate has another authority."""
    of = certificates()
    imposter = of.agent("ws_1", 1)
    async with running(World(), agent_tls=imposter) as server:
        address = f"127.0.0.1:{server.server.agent_port}"
        async with Connector(of.agent("ws_2", 1)).open(address, CONTROL_PLANE, ()) as channel:
            assert await code_of(channel, HEARTBEAT, agent_bearer("ws_2")) is REFUSED
