"""The agent client over gRPC: its messages, metadata, attempts and channels.

tests/contracts tests what it promises to the core.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import grpc
import pytest
from evershell.agent.v1 import agent_service_pb2 as messages
from evershell.agent.v1 import agent_service_pb2_grpc

from evershell.auth.pod_tokens import PodTokens
from evershell.auth.signing_keys import new_key, with_new_key
from evershell.core import deadline, trace
from evershell.core.errors import AgentUnreachableError
from evershell.core.trace import TraceContext
from evershell.fleet import agent_client
from evershell.fleet.agent_client import AgentClient
from evershell.pod.tls import TlsIdentity, listen
from tests.support.ports import free_ports
from tests.support.world import NOW, intent, locked_busy

Context = grpc.aio.ServicerContext[Any, Any]
# On a clock that stands still, so that every signal token is of the same minute.
TOKENS = PodTokens(new_key(), lambda: 1_000.0)
TASK = locked_busy(cancel=intent(force_at=NOW + timedelta(seconds=7)), epoch=3).task
assert TASK is not None


async def _answer_at_once(attempt: int, context: Context) -> None:
    pass


class FakeAgent(agent_service_pb2_grpc.AgentServiceServicer):
    """Records the calls. Awaits `before` before each answer."""

    def __init__(self) -> None:
        self.before: Callable[[int, Context], Awaitable[None]] = _answer_at_once
        self.requests: list[Any] = []
        self.authorizations: list[str] = []
        self.traceparents: list[str] = []
        self.address = ""
        self._server: grpc.aio.Server | None = None

    async def listen(self, address: str = "", tls: TlsIdentity | None = None) -> None:
        """Listens on the address, or on a port that no connection takes while it has stopped."""
        address = address or f"127.0.0.1:{free_ports(1)[0]}"
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        agent_service_pb2_grpc.add_AgentServiceServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{listen(self._server, address, tls)}"
        await self._server.start()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(0)

    async def StartTask(self, request: Any, context: Context) -> messages.StartTaskResponse:
        await self._record(request, context)
        return messages.StartTaskResponse()

    async def CancelTask(self, request: Any, context: Context) -> messages.CancelTaskResponse:
        await self._record(request, context)
        return messages.CancelTaskResponse(known=True)

    async def GetSession(self, request: Any, context: Context) -> messages.GetSessionResponse:
        return messages.GetSessionResponse()

    async def _record(self, request: Any, context: Context) -> None:
        self.requests.append(request)
        self.authorizations += [
            str(value)
            for name, value in context.invocation_metadata() or ()
            if name == "authorization"
        ]
        self.traceparents += [
            str(value)
            for name, value in context.invocation_metadata() or ()
            if name == "traceparent"
        ]
        await self.before(len(self.requests), context)


@pytest.fixture
async def agent() -> AsyncIterator[FakeAgent]:
    agent = FakeAgent()
    await agent.listen()
    yield agent
    await agent.stop()


@pytest.fixture
async def client() -> AsyncIterator[AgentClient]:
    client = AgentClient(TOKENS, lambda: NOW)
    yield client
    await client.aclose()


def workspace_at(address: str | None, workspace_id: str | None = None) -> Any:
    found = locked_busy(cancel=intent(force_at=NOW), epoch=3, agent_address=address).workspace
    return found if workspace_id is None else replace(found, id=workspace_id)


async def cancel(client: AgentClient, address: str | None) -> bool:
    assert TASK is not None
    return await client.cancel_task(workspace_at(address), TASK)


async def unreachable(client: AgentClient, address: str | None) -> None:
    """Fails to cancel, long before the budget of a patient client is over."""
    with pytest.raises(AgentUnreachableError):
        await asyncio.wait_for(cancel(client, address), 30)


async def never(attempt: int, context: Context) -> None:
    await asyncio.Event().wait()


async def test_a_signal_carries_the_intent_and_a_token_of_the_workspace(
    client: AgentClient, agent: FakeAgent
) -> None:
    assert await cancel(client, agent.address) is True
    (request,) = agent.requests
    assert TASK is not None
    assert (request.epoch, request.task_id, request.cancellation.reason) == (3, TASK.id, "enough")
    assert request.cancellation.force_after_ms == 7_000
    assert request.workspace_id.startswith("ws_")
    assert agent.authorizations == [
        value for _, value in TOKENS.signal_metadata(request.workspace_id, request.epoch)
    ]


async def test_a_task_is_delivered_with_an_intent_that_was_recorded_before(
    client: AgentClient, agent: FakeAgent
) -> None:
    assert TASK is not None
    await client.start_task(workspace_at(agent.address), TASK)
    (request,) = agent.requests
    assert (request.task.task_id, request.task.description, request.task.max_iterations) == (
        TASK.id,
        "true",
        1_000,
    )
    assert request.task.cancellation.reason == "enough"


async def test_a_failed_attempt_is_retried_within_the_call(
    client: AgentClient, agent: FakeAgent
) -> None:
    async def fail_once(attempt: int, context: Context) -> None:
        if attempt == 1:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not yet")

    agent.before = fail_once
    assert await cancel(client, agent.address) is True
    assert len(agent.requests) == 2


async def test_an_agent_that_does_not_answer_is_given_up(
    client: AgentClient, agent: FakeAgent
) -> None:
    agent.before = never
    # Ten times as long as it takes.
    async with asyncio.timeout(18):
        await unreachable(client, agent.address)


@pytest.mark.usefixtures("patient")
async def test_a_call_ends_before_the_deadline_of_its_caller(
    client: AgentClient, agent: FakeAgent
) -> None:
    left: list[float | None] = []

    async def note(attempt: int, context: Context) -> None:
        left.append(context.time_remaining())
        await never(attempt, context)

    agent.before = note
    deadline.begin(1.0)
    await unreachable(client, agent.address)
    assert all(each is not None and each < 1.0 for each in left)


async def test_an_agent_of_the_previous_signing_key_is_called_with_its_tokens(
    agent: FakeAgent,
) -> None:
    previous = new_key()
    tokens = PodTokens(with_new_key(previous), lambda: 1_000.0)
    workspace = workspace_at(agent.address)
    ((_, accepted),) = PodTokens(previous, lambda: 1_000.0).signal_metadata(workspace.id, 3)

    async def verify(attempt: int, context: Context) -> None:
        if agent.authorizations[-1] != accepted:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "another key")

    agent.before = verify
    client = AgentClient(tokens, lambda: NOW)
    assert TASK is not None
    assert await client.cancel_task(workspace, TASK) is True
    assert len(agent.requests) == 2
    # The client remembers the key of this agent.
    assert await client.cancel_task(workspace, TASK) is True
    assert len(agent.requests) == 3
    await client.aclose()


async def test_an_agent_that_restarts_during_a_call_is_reached(
    client: AgentClient, agent: FakeAgent
) -> None:
    assert await cancel(client, agent.address) is True
    await agent.stop()
    call = asyncio.create_task(cancel(client, agent.address))
    await asyncio.sleep(0)
    await agent.listen(agent.address)
    assert await call is True


def test_the_time_limit_of_a_signal_is_below_two_seconds() -> None:
    assert agent_client.SIGNAL_BUDGET_SECONDS < 2


async def test_a_signal_carries_the_trace_that_it_is_part_of(
    agent: FakeAgent, client: AgentClient
) -> None:
    assert TASK is not None
    await client.start_task(workspace_at(agent.address), TASK)
    with trace.within(TraceContext("a" * 32, "b" * 16)):
        await client.start_task(workspace_at(agent.address), TASK)
        await client.cancel_task(workspace_at(agent.address), TASK)
    assert agent.traceparents == [f"00-{'a' * 32}-{'b' * 16}-01"] * 2
