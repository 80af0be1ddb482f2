"""The implementations of Agents, each with an agent that a test can make unreachable."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Protocol

import grpc
import grpc.aio
import structlog
from evershell.agent.v1.agent_service_pb2 import (
    Acknowledgement,
    CurrentIteration,
    GetCurrentIterationRequest,
    Signal,
)
from evershell.agent.v1.agent_service_pb2_grpc import add_AgentServiceServicer_to_server

from evershell.agents.active_task import ActiveTask
from evershell.agents.service import AgentService, Context, TokenVerifier, acknowledge
from evershell.agents.session import Session
from evershell.agents.shutdown import Shutdown
from evershell.auth.pod_tokens import PodTokens
from evershell.auth.signing_keys import new_key
from evershell.core import task as core_task
from evershell.core.ports import Agents
from evershell.core.task import Task, TaskEnded
from evershell.core.workspace import Workspace
from evershell.fleet.agent_client import AgentClient
from evershell.store.service_clock import machine_clock
from tests.support import world
from tests.support.ports import free_ports
from tests.support.world import FakeAgents, intent

TOKENS = PodTokens(new_key())


class Fault(Enum):
    """Why an agent cannot be reached."""

    NOT_RUNNING = "not running"
    FROZEN = "frozen"
    REFUSES = "refuses"
    NOT_REGISTERED = "not registered"


class AgentCase(Protocol):
    """An implementation of Agents, and the agent that it calls."""

    @property
    def agents(self) -> Agents:
        """The implementation under test."""

    @property
    def workspace(self) -> Workspace:
        """The workspace of the agent, with its address."""

    def has(self, task: Task) -> bool:
        """Whether the agent has received the task."""

    def is_cancelled(self, task: Task) -> bool:
        """Whether the agent has received the cancellation of the task."""

    def fault(self, fault: Fault) -> AbstractAsyncContextManager[Workspace]:
        """Yields a workspace whose agent cannot be reached until the context ends."""


class _Service(AgentService):
    """The service of an agent, which answers reads only while `runs` is set."""

    runs: asyncio.Event

    async def GetCurrentIteration(
        self, request: GetCurrentIterationRequest, context: Context
    ) -> CurrentIteration:
        await self.runs.wait()
        return await super().GetCurrentIteration(request, context)


class ClientCase:
    """The case of AgentClient, which calls the service and session of a real agent on loopback."""

    def __init__(self) -> None:
        self.client = AgentClient(TOKENS, machine_clock)
        self.agents: Agents = self.client
        self.workspace = world.locked_busy(epoch=3).workspace
        # While this event is clear, the agent answers neither signals nor reads, as if frozen.
        self._runs = asyncio.Event()
        self._runs.set()
        self._server: grpc.aio.Server | None = None
        self._session = self._new_session()

    @classmethod
    @asynccontextmanager
    async def open(cls) -> AsyncIterator["ClientCase"]:
        case = cls()
        # While the agent is down, the port stays free, because no outgoing connection gets it.
        await case._listen(f"127.0.0.1:{free_ports(1)[0]}")
        try:
            yield case
        finally:
            case._runs.set()
            await case.client.aclose()
            await case._stop()

    def has(self, task: Task) -> bool:
        return self._session.task_id == task.id

    def is_cancelled(self, task: Task) -> bool:
        active = self._session.task
        return active is not None and active.id == task.id and active.cancel.is_requested

    @asynccontextmanager
    async def fault(self, fault: Fault) -> AsyncIterator[Workspace]:
        match fault:
            case Fault.NOT_RUNNING:
                await self._stop()
                yield self.workspace
                self._session = self._new_session()
                await self._listen(str(self.workspace.agent_address))
            case Fault.FROZEN:
                self._runs.clear()
                yield self.workspace
                self._runs.set()
            case Fault.REFUSES:
                yield replace(self.workspace, epoch=self.workspace.epoch + 1)
            case Fault.NOT_REGISTERED:
                yield replace(self.workspace, agent_address=None)

    def _new_session(self) -> Session:
        async def work(task: ActiveTask) -> TaskEnded | None:
            await asyncio.Event().wait()
            return None

        return Session(work, Shutdown(), lambda: None, structlog.get_logger())

    async def _listen(self, address: str) -> None:
        secret = TOKENS.signal_secret(self.workspace.id, self.workspace.epoch)
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        service = _Service(TokenVerifier(secret.hex()), self._acknowledge, self._session)
        service.runs = self._runs
        add_AgentServiceServicer_to_server(service, self._server)
        port = self._server.add_insecure_port(address)
        await self._server.start()
        self.workspace = replace(self.workspace, agent_address=f"127.0.0.1:{port}")

    async def _acknowledge(self, signal: Signal) -> Acknowledgement:
        await self._runs.wait()
        return await acknowledge(self._session, signal)

    async def _stop(self) -> None:
        if self._server is not None:
            await self._server.stop(0)
        await self._session.close()


@dataclass
class FakeCase:
    """The case of FakeAgents: agents in memory, without processes."""

    fake: FakeAgents = field(default_factory=FakeAgents)
    workspace: Workspace = field(default_factory=lambda: world.locked_busy().workspace)

    @classmethod
    @asynccontextmanager
    async def open(cls) -> AsyncIterator["FakeCase"]:
        yield cls()

    def __post_init__(self) -> None:
        self.agents: Agents = self.fake
        self.fake.meanwhile = self._set_known

    def has(self, task: Task) -> bool:
        return task.id in self.fake.started

    async def _set_known(self, workspace: Workspace, task: Task) -> None:
        self.fake.known = self.has(task)
        self.fake.iteration = core_task.CurrentIteration(number=int(self.has(task)))

    def is_cancelled(self, task: Task) -> bool:
        return task.id in self.fake.cancelled

    @asynccontextmanager
    async def fault(self, fault: Fault) -> AsyncIterator[Workspace]:
        if fault is Fault.NOT_REGISTERED:
            yield replace(self.workspace, agent_address=None)
            return
        self.fake.reachable = False
        yield self.workspace
        self.fake.reachable = True


def cancelled(task: Task) -> Task:
    """The task with a recorded cancellation."""
    return replace(task, cancel=intent())
