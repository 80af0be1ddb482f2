"""Use cases of agents: bootstrap, register, heartbeat, commit events.

Every reply except the reply to Bootstrap carries a directive.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from evershell.core import agent_rules, task_lifecycle, workspace_lifecycle
from evershell.core.agent_rules import BreachError
from evershell.core.change import Change, Locked
from evershell.core.errors import Failure
from evershell.core.event import Origin
from evershell.core.ports import Clock, Transitions, Workspaces
from evershell.core.prices import PriceList
from evershell.core.task import AgentEvent, Phase, Task
from evershell.core.workspace import Workspace, WorkspaceStatus


@dataclass(frozen=True, slots=True)
class AgentIdentity:
    """An authenticated agent: the agent of a workspace in one epoch."""

    workspace_id: str
    epoch: int
    # The agent's secrets are derived from the signing key at this position of the key file.
    signing_key: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Directive:
    """What the agent must do, according to the database."""

    # Whether the agent must end, because it is fenced.
    fenced: bool
    # The current task, with its intent to cancel if there is one; None if there is no task.
    task: Task | None
    # How long the lease still lasts, by the clock of the service. None if the agent is fenced, and
    # in the reply to a commit, because a commit does not renew the lease.
    lease_seconds: float | None = None


_FENCED = Directive(fenced=True, task=None)
# A heartbeat waits for the lock of its workspace only if less than this share of the lease remains.
# If more remains, a later heartbeat can renew the lease.
_WAIT_BELOW_SHARE = 0.5


class RuntimeStore(Transitions, Workspaces, Protocol):
    """What Runtime needs from the store."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """The calls of agents. Every method is idempotent, because agents retry unacknowledged calls.

    Every method raises UnavailableError if the database does not answer. A method that raises
    BreachError has no effect; the caller then records the breach.
    """

    store: RuntimeStore
    clock: Clock
    # An agent that does not renew its lease for this long counts as lost.
    lease_seconds: float
    # Whether agents may listen on loopback, which means that they run on the workers' machine.
    agents_on_loopback: bool = True
    # Whether agents may listen at other addresses.
    agents_elsewhere: bool = False
    prices: PriceList = field(default_factory=PriceList)

    async def begin_bootstrap(self, agent: AgentIdentity) -> None:
        """Checks that the agent has not registered yet and that its epoch is not over.

        After the registration, the bootstrap token is refused. No tool runs in the agent's pod
        before the registration, so no tool can use the token. Raises Failure unauthenticated.
        """
        workspace = await self.store.get_workspace(agent.workspace_id)
        if (
            workspace is None
            or workspace.is_fenced(agent.epoch)
            or workspace.status is not WorkspaceStatus.PROVISIONING
        ):
            raise Failure("unauthenticated", "The bootstrap token was spent, or its epoch is over.")

    async def register(self, agent: AgentIdentity, address: str) -> Directive:
        """Records that the agent is up and listens on `address`, which is host:port.

        Raises BreachError.
        """
        agent_rules.check_address(
            address, on_loopback=self.agents_on_loopback, elsewhere=self.agents_elsewhere
        )
        return await self._apply(
            agent,
            lambda locked: workspace_lifecycle.register(
                locked, agent.epoch, address, self.lease_seconds, self.clock()
            ),
        )

    async def heartbeat(self, agent: AgentIdentity, task_id: str, phase: Phase) -> Directive:
        """Renews the lease, and records the agent's task and phase.

        Most heartbeats report nothing new while enough of the lease remains. They need only one
        statement, which does not wait for locks and writes at most the lease. All others are
        decided under the lock of the workspace.
        """

        def decide(locked: Locked) -> Change:
            return workspace_lifecycle.heartbeat(
                locked, agent.epoch, task_id, phase, self.lease_seconds, self.clock()
            )

        renewed = await self.store.renew_lease(agent.workspace_id, agent.epoch, self.lease_seconds)
        if renewed is None or renewed.locked.workspace.is_fenced(agent.epoch):
            return _FENCED
        is_safe = renewed.lease_seconds >= self.lease_seconds * _WAIT_BELOW_SHARE
        if is_safe and not decide(renewed.locked).writes_rows(renewed.locked):
            return _directive(
                agent, renewed.locked.workspace, renewed.locked.task, renewed.lease_seconds
            )
        return await self._apply(agent, decide)

    async def commit_events(
        self,
        agent: AgentIdentity,
        task_id: str,
        events: Sequence[AgentEvent],
        trace_id: str = "",
    ) -> Directive:
        """Commits events of a task, in order, in one transaction. Each event stores `trace_id`.

        Raises Failure invalid_state for an iteration that is out of order, and BreachError.
        """
        agent_rules.check_events(events)
        return await self._apply(
            agent,
            lambda locked: task_lifecycle.commit(
                locked, agent.epoch, task_id, events, self.clock(), self.prices
            ).caused_by(Origin(trace_id=trace_id)),
        )

    async def record_breach(self, agent: AgentIdentity, breach: BreachError) -> bool:
        """Fences the agent. The fleet controller ends its pod and its task.

        Returns False if the agent was already fenced.
        """
        was_fenced = True

        def decide(locked: Locked) -> Change:
            nonlocal was_fenced
            was_fenced = locked.workspace.is_fenced(agent.epoch)
            return workspace_lifecycle.record_breach(locked, agent.epoch, str(breach))

        await self.store.transition(agent.workspace_id, decide)
        return not was_fenced

    async def _apply(self, agent: AgentIdentity, decide: Callable[[Locked], Change]) -> Directive:
        change = await self.store.transition(agent.workspace_id, decide)
        if change is None:
            return _FENCED
        return _directive(agent, change.workspace, change.task, change.lease_seconds)


def _directive(
    agent: AgentIdentity, workspace: Workspace, task: Task | None, lease_seconds: float | None
) -> Directive:
    if workspace.is_fenced(agent.epoch):
        return _FENCED
    is_open = task is not None and not task.status.is_terminal
    return Directive(fenced=False, task=task if is_open else None, lease_seconds=lease_seconds)
