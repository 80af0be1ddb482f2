"""Two agents with one address: one of them has registered the address of the other."""

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import grpc.aio
import pytest
from evershell.agent.v1.agent_service_pb2 import Acknowledgement, Signal
from evershell.agent.v1.agent_service_pb2_grpc import add_AgentServiceServicer_to_server

from evershell.agents.service import AgentService, TokenVerifier
from evershell.core.errors import AgentUnreachableError
from evershell.fleet.agent_client import AgentClient
from tests.support.ports import free_ports
from tests.support.waiting import eventually_async
from tests.unit.fleet.fake_agent import TASK, TOKENS, workspace_at

EPOCH = 3


class RealAgent:
    """The service of an agent. Its acknowledgements wait for `release`."""

    def __init__(self, workspace_id: str) -> None:
        self.release = asyncio.Event()
        self.release.set()
        self.signals = 0
        self.streams = 0
        secret = TOKENS.signal_secret(workspace_id, EPOCH).hex()
        session: Any = SimpleNamespace(task=None)
        service = AgentService(TokenVerifier(secret, lambda: 1_000.0), self._acknowledge, session)
        serve = service.Signals

        async def count_and_serve(requests: Any, context: Any) -> AsyncIterator[Acknowledgement]:
            self.streams += 1
            async for acknowledgement in serve(requests, context):
                yield acknowledgement

        service.Signals = count_and_serve  # type: ignore[method-assign,assignment]
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        add_AgentServiceServicer_to_server(service, self._server)
        self.address = f"127.0.0.1:{free_ports(1)[0]}"
        self._server.add_insecure_port(self.address)

    async def _acknowledge(self, signal: Signal) -> Acknowledgement:
        self.signals += 1
        await self.release.wait()
        return Acknowledgement(id=signal.id, known=True)

    async def __aenter__(self) -> "RealAgent":
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(0)


@pytest.fixture
async def client() -> AsyncIterator[AgentClient]:
    client = AgentClient(TOKENS, lambda: workspace_at(None).updated_at)
    yield client
    await client.aclose()


@pytest.mark.usefixtures("patient")
async def test_an_agent_that_registers_the_address_of_another_does_not_disturb_it(
    client: AgentClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = "ws_1", "ws_2"
    async with RealAgent(ids[0]) as agent, RealAgent(ids[1]) as other:
        known = workspace_at(agent.address, ids[0])
        intruder = workspace_at(agent.address, ids[1])
        assert await client.cancel_task(known, TASK)
        agent.release.clear()
        in_flight = asyncio.create_task(client.cancel_task(known, TASK))
        await eventually_async(lambda: agent.signals == 2)
        with monkeypatch.context() as impatient:
            impatient.setattr("evershell.fleet.agent_client.SIGNAL_BUDGET_SECONDS", 0.5)
            with pytest.raises(AgentUnreachableError):
                await client.cancel_task(intruder, TASK)
            with pytest.raises(AgentUnreachableError):
                await client.current_iteration(intruder, TASK)
        refused = agent.streams - 1
        # The stream of the known agent is still open, and reads of the agent still succeed.
        assert await client.current_iteration(known, TASK) is not None
        agent.release.set()
        assert await in_flight
        assert (agent.signals, agent.streams) == (2, 1 + refused)
        assert await client.cancel_task(workspace_at(other.address, ids[1]), TASK)
