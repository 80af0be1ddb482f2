"""The implementation of Agents in tests/faults/invariants, with the agent of that folder."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

from evershell.core import task_lifecycle
from evershell.core.runtime import Runtime
from evershell.core.task import Task
from evershell.core.workspace import Workspace, WorkspaceStatus
from tests.contracts.agents import Fault
from tests.faults.invariants.agent import Agent, Surrounded
from tests.faults.invariants.clock import Clock
from tests.faults.invariants.product import LEASE_SECONDS
from tests.faults.invariants.record import Record
from tests.faults.invariants.spy_store import SpyStore
from tests.faults.invariants.wire import Network, Wire
from tests.support import world
from tests.support.fakes import FakeStore
from tests.support.waiting import eventually_async, settle


class WireCase:
    """Wire, with an agent in this process that has registered in a store in memory."""

    def __init__(self) -> None:
        clock, record = Clock(), Record()
        self._store = SpyStore(FakeStore(lease_clock=clock), record, clock)
        self._shared = Surrounded(
            runtime=Runtime(self._store, clock, LEASE_SECONDS),
            store=self._store,
            record=record,
            clock=clock,
        )
        self._running: list[Agent] = []
        self.agents = Wire(self._running, self._store, record, clock)
        self.workspace = world.workspace(WorkspaceStatus.PROVISIONING, run_id="run_1")

    @classmethod
    @asynccontextmanager
    async def open(cls) -> AsyncIterator["WireCase"]:
        case = cls()
        await case._store.create_workspace(case.workspace)
        await case._start()
        try:
            yield case
        finally:
            await case.agents.close()
            for agent in case._running:
                await agent.crash()
        assert case._shared.record.defects == []

    async def new_task(self) -> Task:
        task = world.task(self.workspace.id)
        await self._store.transition(
            self.workspace.id, lambda locked: task_lifecycle.submit(locked, task, world.USER)
        )
        return task

    def has(self, task: Task) -> bool:
        return self._agent.session.task_id == task.id

    def is_cancelled(self, task: Task) -> bool:
        active = self._agent.session.task
        return active is not None and active.id == task.id and active.cancel.is_requested

    @asynccontextmanager
    async def occupied(self) -> AsyncIterator[None]:
        task = await self.new_task()
        await self.agents.start_task(self.workspace, task)
        yield

    @asynccontextmanager
    async def fault(self, fault: Fault) -> AsyncIterator[Workspace]:
        match fault:
            case Fault.NOT_RUNNING:
                await self._agent.crash()
                yield self.workspace
                await self._start()
            case Fault.FROZEN:
                self._agent.freeze()
                yield self.workspace
                self._agent.thaw()
            case Fault.REFUSES:
                yield replace(self.workspace, epoch=self.workspace.epoch + 1)
            case Fault.NOT_REGISTERED:
                yield replace(self.workspace, agent_address=None)

    @asynccontextmanager
    async def slow(self) -> AsyncIterator[Callable[[], Awaitable[None]]]:
        self.agents.network = Network.SLOW
        yield settle
        self.agents.network = Network.GOOD

    @property
    def _agent(self) -> Agent:
        return self._running[-1]

    async def _start(self) -> None:
        """Starts an agent, and waits until it has registered."""
        self._running.append(Agent(self.workspace.id, self.workspace.epoch, self._shared))

        async def is_registered() -> bool:
            found = await self._store.get_workspace(self.workspace.id)
            assert found is not None
            self.workspace = found
            return found.agent_address is not None

        await eventually_async(is_registered)
