"""The reports of agents, and the directive in each reply."""

from collections.abc import Callable
from datetime import timedelta

import pytest

from evershell.core.change import Change, Locked
from evershell.core.errors import Failure, UnavailableError
from evershell.core.ports import Leased
from evershell.core.runtime import AgentIdentity, Directive, Runtime
from evershell.core.task import Phase, Task, TaskEnded, TaskStatus
from evershell.core.workspace import WorkspaceStatus
from tests.support.world import NOW, World, iteration, task

FENCED = Directive(fenced=True, task=None)


@pytest.fixture
def runtime(world: World) -> Runtime:
    return Runtime(world.store, world.clock, lease_seconds=30)


async def test_an_agent_that_registers_is_not_fenced_and_has_no_task(
    world: World, runtime: Runtime
) -> None:
    made = await world.add(WorkspaceStatus.PROVISIONING)
    directive = await runtime.register(AgentIdentity(made.id, 1), "127.0.0.1:1")
    assert directive == Directive(fenced=False, task=None, lease_seconds=30)
    assert (await world.workspace(made.id)).status is WorkspaceStatus.IDLE


async def test_an_agent_that_registers_again_receives_its_task(
    world: World, runtime: Runtime
) -> None:
    busy, running = await world.add_busy()
    assert await runtime.register(AgentIdentity(busy.id, 1), "127.0.0.1:1") == Directive(
        fenced=False, task=running, lease_seconds=30
    )


async def test_every_reply_carries_the_intent(world: World, runtime: Runtime) -> None:
    busy, running = await world.add_busy()
    agent = AgentIdentity(busy.id, 1)
    await world.cancel(busy.id)
    for directive in (
        await runtime.register(agent, "127.0.0.1:1"),
        await runtime.heartbeat(agent, running.id, Phase.TOOL_CALL),
        await runtime.commit_events(agent, running.id, [iteration(1)]),
        await runtime.commit_events(agent, running.id, [iteration(1)]),
        await runtime.commit_events(agent, "task_earlier", []),
    ):
        assert directive.task is not None and directive.task.id == running.id
        assert directive.task.cancel is not None


async def test_a_directive_after_the_end_has_no_task(world: World, runtime: Runtime) -> None:
    busy, running = await world.add_busy()
    agent = AgentIdentity(busy.id, 1)
    for _ in range(2):
        directive = await runtime.commit_events(
            agent, running.id, [TaskEnded(status=TaskStatus.COMPLETED)]
        )
        assert directive == Directive(fenced=False, task=None)
    assert (await world.event_types(busy.id)).count("task_completed") == 1


async def test_an_agent_that_reports_an_ended_task_receives_the_next_one(
    world: World, runtime: Runtime
) -> None:
    busy, first = await world.add_busy()
    await world.end(busy.id, first.id)
    second = await world.run(busy)
    directive = await runtime.commit_events(AgentIdentity(busy.id, 1), first.id, [iteration(1)])
    assert directive.task == second
    assert (await world.task(busy.id, first.id)).iterations == 0


@pytest.mark.parametrize("epoch", [0, 2])
async def test_another_epoch_is_fenced_and_writes_nothing(
    world: World, runtime: Runtime, epoch: int
) -> None:
    busy, running = await world.add_busy()
    before = await world.events(busy.id)
    agent = AgentIdentity(busy.id, epoch)
    assert await runtime.register(agent, "127.0.0.1:1") == FENCED
    assert await runtime.heartbeat(agent, running.id, Phase.MODEL_CALL) == FENCED
    assert (
        await runtime.commit_events(agent, running.id, [TaskEnded(status=TaskStatus.COMPLETED)])
        == FENCED
    )
    assert (await world.workspace(busy.id), await world.task(busy.id, running.id)) == (
        busy,
        running,
    )
    assert await world.events(busy.id) == before


async def test_the_agent_of_an_unknown_workspace_is_fenced(runtime: Runtime) -> None:
    assert await runtime.heartbeat(AgentIdentity("ws_unknown", 1), "", Phase.NONE) == FENCED


async def test_an_iteration_out_of_order_commits_none_of_its_batch(
    world: World, runtime: Runtime
) -> None:
    busy, running = await world.add_busy()
    with pytest.raises(Failure) as raised:
        await runtime.commit_events(
            AgentIdentity(busy.id, 1), running.id, [iteration(1), iteration(3)]
        )
    assert raised.value.slug == "invalid_state"
    assert (await world.task(busy.id, running.id)).iterations == 0


async def test_a_call_without_a_database_fails_and_does_not_fence(
    world: World, runtime: Runtime
) -> None:
    busy, _ = await world.add_busy()
    world.store.unavailable = True
    with pytest.raises(UnavailableError):
        await runtime.heartbeat(AgentIdentity(busy.id, 1), task(busy.id).id, Phase.NONE)


class Counted:
    """Counts the transitions that a store makes."""

    def __init__(self, world: World) -> None:
        self.count = 0
        self._transition = world.store.transition
        world.store.transition = self._count  # type: ignore[method-assign]

    async def _count(
        self,
        workspace_id: str,
        decide: Callable[[Locked], Change],
        org_id: str | None = None,
        parent_task_id: str | None = None,
    ) -> Change | None:
        self.count += 1
        return await self._transition(workspace_id, decide)


async def leased(world: World, runtime: Runtime) -> tuple[AgentIdentity, Task]:
    """Returns an agent with a full lease and a reported phase, and the task that it runs."""
    busy, running = await world.add_busy(lease_expires_at=NOW)
    agent = AgentIdentity(busy.id, 1)
    await runtime.heartbeat(agent, running.id, Phase.TOOL_CALL)
    return agent, running


async def test_a_heartbeat_that_reports_nothing_new_takes_no_lock(
    world: World, runtime: Runtime
) -> None:
    agent, running = await leased(world, runtime)
    counted = Counted(world)
    for seconds, left in ((5, 25), (5, 30), (5, 25)):
        world.clock.advance(seconds)
        directive = await runtime.heartbeat(agent, running.id, Phase.TOOL_CALL)
        assert (directive.fenced, directive.lease_seconds) == (False, left)
        assert directive.task is not None and directive.task.id == running.id
    assert counted.count == 0
    assert (await world.workspace(agent.workspace_id)).lease_expires_at == NOW + timedelta(
        seconds=40
    )


async def test_a_heartbeat_that_takes_no_lock_carries_the_intent(
    world: World, runtime: Runtime
) -> None:
    agent, running = await leased(world, runtime)
    await world.cancel(agent.workspace_id)
    counted = Counted(world)
    directive = await runtime.heartbeat(agent, running.id, Phase.TOOL_CALL)
    assert counted.count == 0
    assert directive.task is not None and directive.task.cancel is not None


async def test_a_heartbeat_that_takes_no_lock_fences_an_epoch_that_is_over(
    world: World, runtime: Runtime
) -> None:
    agent, running = await leased(world, runtime)
    await world.set_status(agent.workspace_id, WorkspaceStatus.FAILED)
    counted = Counted(world)
    assert await runtime.heartbeat(agent, running.id, Phase.TOOL_CALL) == FENCED
    assert counted.count == 0


@pytest.mark.parametrize(
    ("task_id", "phase"), [(None, Phase.MODEL_CALL), ("task_other", Phase.TOOL_CALL)]
)
async def test_a_heartbeat_records_what_is_new(
    world: World, runtime: Runtime, task_id: str | None, phase: Phase
) -> None:
    agent, running = await leased(world, runtime)
    await runtime.heartbeat(agent, task_id or running.id, phase)
    reported = await world.workspace(agent.workspace_id)
    assert (await world.task(agent.workspace_id, running.id)).phase is phase
    assert reported.task_unnamed_since == (NOW if task_id else None)


async def test_a_heartbeat_waits_for_the_lock_when_half_of_the_lease_has_passed(
    world: World, runtime: Runtime
) -> None:
    """The store does not renew a lease while another transaction has locked the workspace."""
    agent, running = await leased(world, runtime)
    renew = world.store.renew_lease

    async def renew_nothing(workspace_id: str, epoch: int, lease_seconds: float) -> Leased | None:
        return await renew(workspace_id, epoch, 0)

    world.store.renew_lease = renew_nothing  # type: ignore[method-assign]
    counted = Counted(world)
    for seconds, left in ((14, 16), (2, 30)):
        world.clock.advance(seconds)
        directive = await runtime.heartbeat(agent, running.id, Phase.TOOL_CALL)
        assert directive.lease_seconds == left
    assert counted.count == 1
