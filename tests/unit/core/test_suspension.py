"""Idle workspaces are suspended, and the next task wakes them."""

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from evershell.core import deadline, task_lifecycle, tasks, workspace_lifecycle, workspaces
from evershell.core.cancel_task import Outcome
from evershell.core.change import Change, IdempotencyKey, Locked, unchanged
from evershell.core.errors import Failure
from evershell.core.event import Origin
from evershell.core.runtime import AgentIdentity, Runtime
from evershell.core.task import Task, TaskStarted, TaskStatus
from evershell.core.tasks import SubmitTask
from evershell.core.workspace import Workspace, WorkspaceStatus
from tests.support.waiting import settle
from tests.support.world import NOW, World, caller, intent, locked_busy, workspace

LATER = NOW + timedelta(minutes=5)
SUSPENDED, PROVISIONING = WorkspaceStatus.SUSPENDED, WorkspaceStatus.PROVISIONING
IDLE, BUSY = WorkspaceStatus.IDLE, WorkspaceStatus.BUSY
CANNOT_START = "its agent cannot start"


async def submit(world: World, at: Workspace, key: IdempotencyKey | None = None) -> Task:
    request = SubmitTask(workspace_id=at.id, description="ls", origin=Origin("req_s"), key=key)
    return await tasks.submit_task(
        caller(), request, world.store, world.agents, world.subscriptions, world.clock
    )


async def wake(world: World) -> tuple[Workspace, "asyncio.Task[Task]"]:
    """Submits a task to a suspended workspace. Returns the workspace and the waiting call."""
    at = await world.add(SUSPENDED)
    call = asyncio.create_task(submit(world, at))
    await settle()
    assert not call.done()
    return await world.workspace(at.id), call


def runtime(world: World) -> Runtime:
    return Runtime(world.store, world.clock, lease_seconds=9)


def test_an_idle_workspace_is_suspended_and_its_agent_fenced() -> None:
    fields = {"agent_address": "127.0.0.1:9", "lease_expires_at": NOW, "run_id": "run_1"}
    idle = workspace(IDLE, epoch=3, **fields)
    suspended = workspace_lifecycle.suspend(Locked(idle, None), NOW, LATER).workspace
    assert (suspended.status, suspended.epoch, suspended.updated_at) == (SUSPENDED, 3, LATER)
    assert (suspended.agent_address, suspended.lease_expires_at) == (None, None)
    assert suspended.is_fenced(3)
    # The controller must still end the pod.
    assert suspended.run_id == "run_1" and suspended.awaits_controller
    assert workspace_lifecycle.finish_suspension(Locked(suspended, None), 2) == Change(
        suspended, None
    )
    ended = workspace_lifecycle.finish_suspension(Locked(suspended, None), 3).workspace
    assert ended == replace(suspended, run_id=None) and not ended.awaits_controller


@pytest.mark.parametrize("status", sorted(set(WorkspaceStatus) - {IDLE}))
def test_only_an_idle_workspace_is_suspended(status: WorkspaceStatus) -> None:
    locked = locked_busy() if status is BUSY else Locked(workspace(status), None)
    assert workspace_lifecycle.suspend(locked, LATER, LATER) == unchanged(locked)


def test_a_workspace_that_was_used_in_between_is_not_suspended() -> None:
    locked = Locked(workspace(updated_at=LATER), None)
    assert workspace_lifecycle.suspend(locked, NOW, LATER) == unchanged(locked)


@pytest.mark.parametrize(
    ("run_id", "status", "events"),
    [
        (None, WorkspaceStatus.STOPPED, ["workspace_stopped"]),
        # The pod of the workspace has not ended yet.
        ("run_1", WorkspaceStatus.STOPPING, []),
    ],
)
async def test_a_suspended_workspace_is_stopped_at_once(
    world: World, run_id: str | None, status: WorkspaceStatus, events: list[str]
) -> None:
    at = await world.add(SUSPENDED, run_id=run_id)
    stopped = await workspaces.stop_workspace(
        caller(), at.id, Origin("req_1"), world.store, world.agents, world.clock
    )
    assert (stopped.status, await world.event_types(at.id)) == (status, events)


async def test_a_suspended_workspace_has_no_task_to_cancel(world: World) -> None:
    at = await world.add(SUSPENDED)
    assert (await world.cancel(at.id)).outcome is Outcome.NO_ACTIVE_TASK


async def test_a_task_wakes_its_workspace_and_the_registration_assigns_it(world: World) -> None:
    at, call = await wake(world)
    assert (at.status, at.epoch, at.run_id) == (PROVISIONING, 2, None)
    assert at.current_task_id is not None
    agent = AgentIdentity(at.id, 2)
    for _ in range(2):
        # If an agent misses the reply, it registers again.
        directive = await runtime(world).register(agent, "127.0.0.1:9")
        assert directive.task is not None and directive.task.id == at.current_task_id
    assert (await world.workspace(at.id)).status is BUSY
    await world.commit(at.id, at.current_task_id, TaskStarted())
    assert (await call).status is TaskStatus.RUNNING
    # The agent got the task with the reply, and not by a signal.
    assert world.agents.started == []
    assert await world.event_types(at.id) == [
        "task_submitted",
        "workspace_resumed",
        "task_started",
    ]


async def test_a_workspace_that_is_woken_takes_no_second_task(world: World) -> None:
    at, call = await wake(world)
    with pytest.raises(Failure) as raised:
        await submit(world, at)
    assert (raised.value.slug, raised.value.details["status"]) == ("workspace_busy", "provisioning")
    call.cancel()


async def test_a_call_waits_for_the_agent_until_its_deadline(world: World) -> None:
    at = await world.add(SUSPENDED)
    deadline.begin(0.3)
    submitted = await submit(world, at)
    assert submitted.status is TaskStatus.SUBMITTED
    assert (await world.workspace(at.id)).current_task_id == submitted.id


async def test_a_call_that_wakes_ends_its_wait_when_the_server_drains(world: World) -> None:
    _, call = await wake(world)
    world.subscriptions.drain()
    assert (await call).status is TaskStatus.SUBMITTED


async def test_a_repeat_waits_for_the_agent_that_the_first_call_has_asked_for(
    world: World,
) -> None:
    """The first call was given up before it was answered."""
    at, key = await world.add(SUSPENDED), IdempotencyKey("key", b"")
    first = asyncio.create_task(submit(world, at, key))
    await settle()
    first.cancel()
    repeat = asyncio.create_task(submit(world, at, key))
    await settle()
    assert not repeat.done()
    task_id = (await world.workspace(at.id)).current_task_id or ""
    await runtime(world).register(AgentIdentity(at.id, 2), "127.0.0.1:9")
    await world.commit(at.id, task_id, TaskStarted())
    assert ((await repeat).id, world.agents.started) == (task_id, [])


async def test_a_task_is_cancelled_before_its_agent_has_registered(world: World) -> None:
    at, call = await wake(world)
    cancelled = await world.cancel(at.id)
    assert cancelled.outcome is Outcome.ACCEPTED
    assert world.agents.cancelled == []
    # If the agent registered now, it would learn of the cancellation with its task.
    registered = workspace_lifecycle.register(
        Locked(at, cancelled.task), 2, "127.0.0.1:9", 9, world.clock()
    )
    assert registered.task is not None and registered.task.cancel is not None
    await world.change(at.id, lambda locked: task_lifecycle.end_unstarted(locked, world.clock()))
    ended = await call
    assert (ended.status, ended.iterations) == (TaskStatus.CANCELLED, 0)
    # The workspace is still waking up.
    await runtime(world).register(AgentIdentity(at.id, 2), "127.0.0.1:9")
    assert (await world.workspace(at.id)).status is IDLE


async def test_only_a_cancelled_task_that_no_agent_has_is_ended(world: World) -> None:
    at, call = await wake(world)
    for locked in (
        Locked(at, await world.task(at.id, at.current_task_id or "")),
        Locked(at, None),
        locked_busy(cancel=intent()),
    ):
        assert task_lifecycle.end_unstarted(locked, LATER) == unchanged(locked)
    call.cancel()


@pytest.mark.parametrize("cancelled", [False, True])
@pytest.mark.parametrize("loss", [CANNOT_START, "the stack was restarted"])
async def test_a_wake_that_fails_ends_the_task(world: World, loss: str, cancelled: bool) -> None:
    at, call = await wake(world)
    if cancelled:
        await world.cancel(at.id)

    def lose(locked: Locked) -> Change:
        if loss == CANNOT_START:
            return workspace_lifecycle.lose_agent(locked, 2, loss, LATER, work_stopped=True)
        placed = replace(locked, workspace=replace(locked.workspace, run_id="run_1"))
        return workspace_lifecycle.place(placed, 2, "run_2", LATER, work_stopped=True)

    await world.change(at.id, lose)
    task_id = at.current_task_id or ""
    if cancelled:
        assert (await call).status is TaskStatus.CANCELLED
    else:
        with pytest.raises(Failure) as raised:
            await call
        assert raised.value.slug == "agent_unreachable"
    ended = await world.task(at.id, task_id)
    expected = TaskStatus.CANCELLED if cancelled else TaskStatus.DELIVERY_FAILED
    assert (ended.status, ended.reason, ended.iterations) == (expected, loss, 0)
