"""The controller suspends idle workspaces, and wakes them."""

from dataclasses import replace
from datetime import timedelta

from evershell.core import task_lifecycle, workspace_lifecycle
from evershell.core.task import TaskStatus
from evershell.core.workspace import Workspace, WorkspaceStatus
from tests.support.fleet import RUN_ID, Fleet
from tests.support.store.due import UNSETTLED, due_ids
from tests.support.world import NOW, USER, intent, task

IDLE, SUSPENDED = WorkspaceStatus.IDLE, WorkspaceStatus.SUSPENDED
PROVISIONING = WorkspaceStatus.PROVISIONING
AFTER = timedelta(minutes=10)


async def wake(fleet: Fleet, at: Workspace) -> str:
    """Submits a task to the suspended workspace. Returns the id of the task."""
    new = task(at.id)
    await fleet.world.change(at.id, lambda locked: task_lifecycle.submit(locked, new, USER))
    return new.id


async def test_an_idle_workspace_gives_its_pod_back(fleet: Fleet) -> None:
    fleet.suspend_after = AFTER
    long, busy = await fleet.add(IDLE), (await fleet.add_busy())[0]
    fleet.world.clock.advance(AFTER.total_seconds())
    short = await fleet.add(IDLE, updated_at=fleet.world.clock())
    await fleet.scan()
    suspended = await fleet.world.workspace(long.id)
    assert (suspended.status, suspended.run_id) == (SUSPENDED, None)
    assert fleet.pods.calls == ["end 3"] and not fleet.pods.is_alive(long)
    for each in (short, busy):
        assert await fleet.world.workspace(each.id) == each


async def test_without_the_setting_no_workspace_is_suspended(fleet: Fleet) -> None:
    idle = await fleet.add(IDLE)
    fleet.world.clock.advance(10 * AFTER.total_seconds())
    await fleet.scan()
    assert await fleet.world.workspace(idle.id) == idle


async def test_the_next_leader_ends_the_pod_of_a_suspended_workspace(fleet: Fleet) -> None:
    """The last leader ended after it had suspended the workspace, so the pod still runs.

    The pod may belong to an earlier run of the stack.
    """
    for run_id in (RUN_ID, "run_0"):
        at = await fleet.add(SUSPENDED, run_id=run_id)
        await fleet.scan()
        assert await fleet.world.workspace(at.id) == replace(at, run_id=None)
        assert not fleet.pods.is_alive(at)
    assert fleet.pods.calls == ["end 3", "end 3"]


async def test_a_suspended_workspace_costs_nothing(fleet: Fleet) -> None:
    at = await fleet.add(SUSPENDED, run_id=None, pod=False)
    await fleet.scan()
    assert fleet.pods.calls == [] and await fleet.world.workspace(at.id) == at
    assert await due_ids(fleet.world.store, *UNSETTLED) == []


async def test_a_task_wakes_a_workspace_whose_pod_has_not_ended(fleet: Fleet) -> None:
    at = await fleet.add(SUSPENDED)
    await wake(fleet, at)
    await fleet.scan()
    woken = await fleet.world.workspace(at.id)
    assert (woken.status, woken.epoch, woken.run_id) == (PROVISIONING, 2, RUN_ID)
    # The earlier pod ends before the next one starts.
    assert fleet.pods.calls == ["end 0", "start 2"]
    assert not fleet.pods.is_alive(at) and fleet.pods.is_alive(woken)


async def test_a_workspace_that_is_woken_and_deleted_leaves_no_pod(fleet: Fleet) -> None:
    """The last leader ended after it had suspended the workspace, so the pod still runs."""
    at = await fleet.add(SUSPENDED)
    await wake(fleet, at)
    await fleet.world.change(
        at.id, lambda locked: workspace_lifecycle.request_delete(locked, intent())
    )
    await fleet.scan()
    assert fleet.pods.calls == ["end 0", "remove"] and not fleet.pods.is_alive(at)
    assert await fleet.world.store.get_workspace(at.id) is None


async def test_a_workspace_that_is_woken_while_its_pod_ends_stays_awake(fleet: Fleet) -> None:
    at = await fleet.add(SUSPENDED)

    woken = at.in_new_epoch("", NOW)

    def wake_now() -> None:
        fleet.world.store.workspaces[at.id] = woken

    fleet.pods.on_end = wake_now
    await fleet.scan()
    assert await fleet.world.workspace(at.id) == woken


async def test_a_cancelled_task_that_no_agent_has_is_ended(fleet: Fleet) -> None:
    at = await fleet.add(SUSPENDED, run_id=None, pod=False)
    task_id = await wake(fleet, at)
    await fleet.world.change(at.id, lambda locked: task_lifecycle.request_cancel(locked, intent()))
    await fleet.scan()
    ended = await fleet.world.task(at.id, task_id)
    assert (ended.status, ended.iterations) == (TaskStatus.CANCELLED, 0)
    assert fleet.world.agents.cancelled == []
    woken = await fleet.world.workspace(at.id)
    assert (woken.status, woken.current_task_id) == (PROVISIONING, None)


async def test_a_wake_that_fails_fails_its_task(fleet: Fleet) -> None:
    at = await fleet.add(SUSPENDED, run_id=None, pod=False)
    task_id = await wake(fleet, at)
    fleet.pods.start_error = OSError(28, "No space left on device")
    await fleet.scan()
    assert (await fleet.world.workspace(at.id)).status is WorkspaceStatus.FAILED
    ended = await fleet.world.task(at.id, task_id)
    assert ended.status is TaskStatus.DELIVERY_FAILED and "No space" in ended.reason
