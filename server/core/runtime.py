"""What agents say to the control plane, and the directive they get in every reply."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from server.core import lifecycle
from server.core.lifecycle import AgentEvent, Change, Session
from server.core.ports import Clock, Store
from server.core.task import Phase, Task


@dataclass(frozen=True, slots=True)
class AgentIdentity:
    """An authenticated agent: the one of this workspace in this epoch."""

    workspace_id: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Directive:
    """What the database holds for an agent."""

    # Its epoch is over.
    fenced: bool
    # The task that has not ended, with its intent if there is one.
    task: Task | None


@dataclass(frozen=True, slots=True)
class Runtime:
    """The agents' use cases. Each may be repeated until it is acknowledged; UnavailableError says
    that nothing is known.
    """

    store: Store
    clock: Clock
    # An agent that is not heard of for this long is taken for lost.
    lease_seconds: float

    async def register(self, agent: AgentIdentity, address: str) -> Directive:
        """The agent is up and listens on `address`."""
        return await self._apply(
            agent,
            lambda session: lifecycle.register(
                session, agent.epoch, address, self.lease_seconds, self.clock()
            ),
        )

    async def heartbeat(self, agent: AgentIdentity, task_id: str, phase: Phase) -> Directive:
        """The agent lives, and is at `phase` of `task_id`."""
        return await self._apply(
            agent,
            lambda session: lifecycle.heartbeat(
                session, agent.epoch, task_id, phase, self.lease_seconds, self.clock()
            ),
        )

    async def commit_events(
        self, agent: AgentIdentity, task_id: str, events: Sequence[AgentEvent]
    ) -> Directive:
        """What has happened in a task, in order, in one transaction. Raises Failure invalid_state
        for an iteration out of order.
        """
        return await self._apply(
            agent,
            lambda session: lifecycle.commit(session, agent.epoch, task_id, events, self.clock()),
        )

    async def _apply(self, agent: AgentIdentity, decide: Callable[[Session], Change]) -> Directive:
        change = await self.store.transition(agent.workspace_id, decide)
        if change is None or lifecycle.is_fenced(change.workspace, agent.epoch):
            return Directive(fenced=True, task=None)
        task = (
            change.task if change.task is not None and not change.task.status.is_terminal else None
        )
        return Directive(fenced=False, task=task)
