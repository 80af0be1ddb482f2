"""The reports of agents, and the directive in each reply."""

import pytest

from server.core.errors import Failure, UnavailableError
from server.core.runtime import AgentIdentity, Directive, Runtime
from server.core.task import Phase, TaskStatus
from server.core.task_lifecycle import TaskEnded, TaskStarted
from server.core.workspace import WorkspaceStatus
from tests.support.world import World, iteration, task

FENCED = Directive(fenced=True, task=None)


@pytest.fixture
def runtime(world: World) -> Runtime:
    return Runtime(world.store, world.clock, lease_seconds=30)


async def test_an_agent_that_registers_is_not_fenced_and_has_no_task(
    world: World, runtime: Runtime
) -> None:
    made = await world.add(WorkspaceStatus.PROVISIONING)
    directive = await runtime.register(AgentIdentity(made.id, 1), "127.0.0.1:1")
    assert directive == Directive(fenced=False, task=None)
    assert (await world.workspace(made.id)).status is WorkspaceStatus.IDLE


async def test_an_agent_that_registers_again_receives_its_task(
    world: World, runtime: Runtime
) -> None:
    busy, running = await world.add_busy()
    assert await runtime.register(AgentIdentity(busy.id, 1), "127.0.0.1:1") == Directive(
        fenced=False, task=running
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


async def test_a_cancellation_before_the_start_reaches_the_agent_at_its_start(
    world: World, runtime: Runtime
) -> None:
    busy, running = await world.add_busy()
    await world.cancel(busy.id)
    directive = await runtime.commit_events(AgentIdentity(busy.id, 1), running.id, [TaskStarted()])
    assert (
        directive.task is not None
        and directive.task.cancel is not None
        and directive.task.iterations == 0
    )


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


@pytest.mark.parametrize("status", [WorkspaceStatus.STOPPED, WorkspaceStatus.FAILED])
async def test_the_agent_of_an_ended_workspace_is_fenced(
    world: World, runtime: Runtime, status: WorkspaceStatus
) -> None:
    ended = await world.add(status)
    assert await runtime.heartbeat(AgentIdentity(ended.id, 1), "", Phase.NONE) == FENCED


async def test_the_agent_of_an_unknown_workspace_is_fenced(runtime: Runtime) -> None:
    assert await runtime.heartbeat(AgentIdentity("ws_unknown", 1), "", Phase.NONE) == FENCED


async def test_a_stopping_workspace_still_accepts_commits(world: World, runtime: Runtime) -> None:
    busy, running = await world.add_busy()
    await world.set_status(busy.id, WorkspaceStatus.STOPPING)
    directive = await runtime.commit_events(
        AgentIdentity(busy.id, 1), running.id, [TaskEnded(status=TaskStatus.FAILED)]
    )
    assert directive == Directive(fenced=False, task=None)
    assert (await world.task(busy.id, running.id)).status is TaskStatus.FAILED


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
