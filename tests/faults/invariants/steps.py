"""What the rules of the state machine ask about a run, and the steps that they share."""

from collections.abc import Callable
from datetime import datetime, timedelta

from hypothesis.stateful import RuleBasedStateMachine

from evershell.core.task import TaskLimits
from evershell.core.workspace import WorkspaceStatus
from tests.faults.invariants.agent import Agent
from tests.faults.invariants.invariants import duration_ends_at
from tests.faults.invariants.product import STEP_SECONDS, SUSPEND_AFTER, OpenStores
from tests.faults.invariants.trouble import Link
from tests.faults.invariants.wire import Network
from tests.faults.invariants.world import World

# A run has at least this many steps per fault. With more faults, a run would not progress.
_STEPS_A_TROUBLE = 5
# A run has at least this many steps per advance of the clock.
_STEPS_A_PASSING = 4


class Steps(RuleBasedStateMachine):
    """One workspace with its agents and callers, and the steps that the rules of subclasses use."""

    def __init__(self, open_stores: OpenStores) -> None:
        super().__init__()
        self.world = World(open_stores)
        self._steps = 0
        self._troubles = 0
        self._passings = 0

    @property
    def has_open_task(self) -> bool:
        """Whether the last task may be open: its end has not been observed."""
        return any(self.world.store.is_open(task_id) for task_id in self.world.task_ids[-1:])

    @property
    def may_be_trouble(self) -> bool:
        """Whether the run has enough steps for one more fault."""
        return self._troubles * _STEPS_A_TROUBLE < self._steps

    @property
    def may_time_pass(self) -> bool:
        """Whether the run has enough steps for one more advance of the clock."""
        return self._passings * _STEPS_A_PASSING < self._steps

    @property
    def is_deadline_ahead(self) -> bool:
        """Whether the open task has a force deadline more than one step ahead."""
        intent = self.world.store.intent(self.world.task_ids[-1]) if self.has_open_task else None
        soon = self.world.clock() + timedelta(seconds=STEP_SECONDS)
        return intent is not None and intent.force_at is not None and intent.force_at > soon

    @property
    def limit_ahead(self) -> datetime | None:
        """When the open task will reach its limit of duration; None if it will not."""
        task = self.world.store.tasks[self.world.task_ids[-1]] if self.has_open_task else None
        due = duration_ends_at(task) if task is not None and task.cancel is None else None
        return due if due is not None and due > self.world.clock() else None

    def awake(self) -> list[Agent]:
        """Returns the agents that run and are not frozen."""
        return [agent for agent in self.world.agents if agent.is_up and not agent.is_frozen]

    def there(self) -> list[Agent]:
        """Returns the agents whose process has not ended."""
        return [agent for agent in self.world.agents if not agent.is_gone]

    def _one_of(self, agents: list[Agent], which: int) -> Agent:
        return agents[max(which, -len(agents))]

    def _do(self, act: Callable[[], object]) -> None:
        """Calls `act` within the event loop, and waits until everything is at rest."""

        async def step() -> None:
            act()

        self.world.run(step())

    async def _begin(
        self,
        *,
        comes_up: bool = True,
        is_heard: bool = True,
        network: Network = Network.GOOD,
        limits: TaskLimits | None = None,
    ) -> None:
        if comes_up:
            await self._come_up()
        if not is_heard:
            for agent in self.awake():
                agent.set_link(Link.REQUESTS_LOST)
        self.world.wire.network = network
        is_suspended = (await self.world.workspace()).status is WorkspaceStatus.SUSPENDED
        await self.world.submit(limits)
        if comes_up and is_suspended:
            await self._scan()

    async def _come_up(self) -> None:
        """Resumes the workspace, unless it is suspended, and makes the controller scan."""
        if (await self.world.workspace()).status is not WorkspaceStatus.SUSPENDED:
            await self.world.resume()
        await self._scan()

    async def _scan(self) -> None:
        self.world.lead()
        self.world.changes.publish(self.world.workspace_id)
        await self.world.settle()
        if (await self.world.workspace()).status is WorkspaceStatus.PROVISIONING:
            self.world.changes.publish(self.world.workspace_id)
            await self.world.settle()

    async def _redeliver(self) -> None:
        self.world.lead()
        await self.world.advance(3.0)

    async def _idle(self) -> None:
        """Leaves the workspace unused until a controller has suspended it."""
        self.world.lead()
        await self.world.advance(2 * SUSPEND_AFTER.total_seconds() + 2.0)

    async def _fence(self) -> None:
        """Begins a new epoch while the controller cannot reach the agent of the current epoch."""
        self.world.pods.are_in_reach = False
        await self.world.restart_stack()
        await self._scan()

    async def _cut_off(self) -> None:
        """Cuts the agents off for longer than their lease while no controller leads.

        The agents must end when their own clock says that the lease is over.
        """
        await self.world.stop_leading()
        for agent in self.awake():
            agent.set_link(Link.REQUESTS_LOST)
        await self.world.advance(15.0)

    async def _die_at_limit(self) -> None:
        due = self.limit_ahead
        assert due is not None
        await self.world.advance_to(due)
        for agent in self.there():
            await agent.crash()

    async def _reach_limit_without_controller(self) -> None:
        due = self.limit_ahead
        assert due is not None
        await self.world.stop_leading()
        await self.world.advance_to(due + timedelta(seconds=STEP_SECONDS))
        self.world.lead()
        await self.world.advance(2.0)
