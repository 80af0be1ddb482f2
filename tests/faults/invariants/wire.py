"""How the control plane reaches the agents: over a network that the state machine controls."""

import asyncio
from collections.abc import Callable
from enum import Enum
from typing import TypeVar

from evershell.agent.v1.agent_service_pb2 import Cancellation

from evershell.core.errors import AgentUnreachableError
from evershell.core.ports import Clock, Store
from evershell.core.task import CurrentIteration, Task
from evershell.core.workspace import Workspace
from evershell.pod.messages import cancellation_fields, encode_assignment
from tests.faults.invariants.agent import Agent
from tests.faults.invariants.record import Record, Signal

Answer = TypeVar("Answer")

# The delay of a call over a slow network: longer than a step of the clock, shorter than the time
# limit of a call (2 s).
SLOW_SECONDS = 1.0
# The delay of a late message. Its caller has given up by then.
LATE_SECONDS = 2.0


class Network(Enum):
    """The state of the network between the control plane and the agents."""

    GOOD = "good"
    SLOW = "slow"
    # The caller gives up, and the message arrives later.
    LATE = "late"
    ANSWER_LOST = "answer lost"
    LOST = "lost"


class Wire:
    """Implements core.ports.Agents."""

    def __init__(self, agents: list[Agent], observer: Store, record: Record, clock: Clock) -> None:
        self.network = Network.GOOD
        self._agents = agents
        # Another session of the database, which sees only committed rows.
        self._observer = observer
        self._record = record
        self._clock = clock
        self._late: set[asyncio.Task[None]] = set()

    def reaches(self, workspace: Workspace) -> bool:
        """Whether a call arrives at once and its answer comes back."""
        agent = self._agent_of(workspace)
        return self.network is Network.GOOD and agent is not None and not agent.is_frozen

    async def start_task(self, workspace: Workspace, task: Task) -> None:
        assignment = encode_assignment(task, self._clock())
        is_known = await self._call(
            workspace, lambda agent: agent.start(workspace.epoch, assignment)
        )
        if not is_known:
            raise AgentUnreachableError("it works on another task")

    async def cancel_task(self, workspace: Workspace, task: Task) -> bool:
        seen = await self._observer.get_task(workspace.id, task.id)
        self._record.signals.append(
            Signal(task_id=task.id, was_recorded=seen is not None and seen.cancel is not None)
        )
        cancellation = Cancellation(**(cancellation_fields(task, self._clock()) or {}))
        return await self._call(
            workspace, lambda agent: agent.cancel(workspace.epoch, task.id, cancellation)
        )

    async def current_iteration(self, workspace: Workspace, task: Task) -> CurrentIteration | None:
        """Is never called, because no rule reads the current iteration."""
        raise NotImplementedError

    async def close(self) -> None:
        """Drops the messages that have not arrived yet."""
        for late in self._late:
            late.cancel()

    async def _call(self, workspace: Workspace, deliver: Callable[[Agent], Answer]) -> Answer:
        network = self.network
        if network is Network.SLOW:
            await asyncio.sleep(SLOW_SECONDS)
        agent = self._agent_of(workspace)
        if agent is None or network is Network.LOST:
            raise AgentUnreachableError("no agent listens at this address")
        if network is Network.LATE:
            late = asyncio.create_task(self._arrive_late(agent, deliver))
            self._late.add(late)
            late.add_done_callback(self._late.discard)
            raise AgentUnreachableError("it does not answer in time")
        if agent.is_frozen:
            agent.when_thawed(lambda: _delivered(agent, deliver))
            raise AgentUnreachableError("it does not answer")
        try:
            answer = deliver(agent)
        except ValueError as error:
            raise AgentUnreachableError(str(error)) from error
        if network is Network.ANSWER_LOST:
            raise AgentUnreachableError("its answer is lost")
        return answer

    async def _arrive_late(self, agent: Agent, deliver: Callable[[Agent], object]) -> None:
        await asyncio.sleep(LATE_SECONDS)
        await agent.thawed.wait()
        _delivered(agent, deliver)

    def _agent_of(self, workspace: Workspace) -> Agent | None:
        return next(
            (
                agent
                for agent in self._agents
                if agent.address == workspace.agent_address and not agent.is_gone
            ),
            None,
        )


def _delivered(agent: Agent, deliver: Callable[[Agent], object]) -> None:
    """Delivers a call after its caller has given up."""
    if agent.is_gone:
        return
    try:
        deliver(agent)
    except ValueError:
        return
