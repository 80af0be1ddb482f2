"""AGENT_TLS in the agent client: which agents the control plane calls."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from evershell.agent.v1.agent_service_pb2_grpc import AgentServiceStub

from evershell.core import deadline
from evershell.core.errors import AgentUnreachableError
from evershell.fleet import agent_client
from evershell.fleet.agent_client import AgentClient
from evershell.pod.tls import Connector, agent_name
from evershell.store.service_clock import machine_clock
from tests.support.agent_tls import Certificates, certificates
from tests.unit.fleet.fake_agent import TASK, TOKENS, FakeAgent, workspace_at

EPOCH = 3


@pytest.fixture
def of() -> Certificates:
    return certificates()


@pytest.fixture
async def client(of: Certificates) -> AsyncIterator[AgentClient]:
    client = AgentClient(TOKENS, machine_clock, of.control_plane)
    yield client
    await client.aclose()


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives calls enough time to reach an agent even on a busy machine."""
    monkeypatch.setattr(agent_client, "SIGNAL_BUDGET_SECONDS", 60.0)


async def cancel(client: AgentClient, workspace: object) -> bool:
    return await client.cancel_task(workspace, TASK)  # type: ignore[arg-type]


async def is_unreachable(client: AgentClient, workspace: object) -> None:
    """Cancels. The call must fail, after several attempts."""
    deadline.begin(0.7)
    with pytest.raises(AgentUnreachableError):
        await cancel(client, workspace)


async def test_an_agent_in_plain_text_is_not_signalled(client: AgentClient) -> None:
    agent = FakeAgent()
    await agent.listen()
    await is_unreachable(client, workspace_at(agent.address))
    assert agent.opened == []
    await agent.stop()


async def test_no_token_is_sent_to_strangers(of: Certificates) -> None:
    """Each stranger listens on the agent's address with another certificate, and is called once."""
    workspace_id = workspace_at(None).id
    trusted = of.agent(workspace_id, EPOCH).trusted
    connector = Connector(of.control_plane)
    for name, identity in of.strangers(workspace_id, EPOCH, trusted).items():
        agent = FakeAgent()
        await agent.listen(tls=identity)
        async with connector.open(agent.address, agent_name(workspace_id, EPOCH), ()) as channel:
            stub: Any = AgentServiceStub(channel)
            token = TOKENS.signal_token(workspace_id, EPOCH)
            call = stub.Signals(metadata=(("authorization", f"Bearer {token}"),))
            assert await call.code() is grpc.StatusCode.UNAVAILABLE, name
        assert agent.opened == [], name
        await agent.stop()


async def test_the_next_agent_on_an_address_is_reached(
    client: AgentClient, of: Certificates
) -> None:
    """The next agent has another certificate, so it needs another channel than the first agent."""
    first, second = "ws_1", "ws_2"
    agent = FakeAgent()
    await agent.listen(tls=of.agent(first, EPOCH))
    assert await cancel(client, workspace_at(agent.address, first)) is True
    await agent.stop()
    await agent.listen(agent.address, tls=of.agent(second, EPOCH))
    assert await cancel(client, workspace_at(agent.address, second)) is True
    await agent.stop()
