"""The controller and workspaces that stop: when their pods end, and how their tasks end."""

from datetime import timedelta

from evershell.core import workspace_lifecycle
from evershell.core.bounds import FORCE_MARGIN
from evershell.core.change import Change, Locked
from evershell.core.task import TaskStatus
from evershell.core.workspace import WorkspaceStatus
from evershell.fleet.controller import END_GRACE_SECONDS
from tests.support.fleet import Fleet
from tests.support.world import NOW, intent


async def test_after_a_restart_of_the_stack_a_stopping_workspace_is_stopped(fleet: Fleet) -> None:
    stopping = await fleet.add(WorkspaceStatus.STOPPING, run_id="run_0")
    await fleet.scan()
    assert (await fleet.world.workspace(stopping.id)).status is WorkspaceStatus.STOPPED
    assert "start 1" not in fleet.pods.calls


async def stop(fleet: Fleet, workspace_id: str) -> None:
    def request(locked: Locked) -> Change:
        return workspace_lifecycle.request_stop(
            locked, intent(requested_at=fleet.world.clock(), reason="workspace stopped")
        )

    await fleet.world.change(workspace_id, request)


async def test_an_idle_workspace_stops_at_once(fleet: Fleet) -> None:
    idle = await fleet.add(WorkspaceStatus.IDLE)
    await stop(fleet, idle.id)
    await fleet.scan()
    stopped = await fleet.world.workspace(idle.id)
    assert (stopped.status, stopped.run_id, stopped.agent_address) == (
        WorkspaceStatus.STOPPED,
        None,
        None,
    )
    assert fleet.pods.calls == [f"end {END_GRACE_SECONDS:g}"]
    assert await fleet.world.event_types(idle.id) == ["workspace_stopped"]


async def test_a_workspace_that_never_had_a_pod_stops(fleet: Fleet) -> None:
    made = await fleet.add(WorkspaceStatus.PROVISIONING, run_id=None, pod=False)
    await stop(fleet, made.id)
    await fleet.scan()
    assert (await fleet.world.workspace(made.id)).status is WorkspaceStatus.STOPPED
    assert "start 1" not in fleet.pods.calls


async def test_a_stopping_pod_runs_until_the_deadline_of_its_task(fleet: Fleet) -> None:
    busy, running = await fleet.add_busy()
    await stop(fleet, busy.id)
    # The grace period is 10 s.
    fleet.world.clock.now = NOW + timedelta(seconds=10) + FORCE_MARGIN
    await fleet.scan()
    assert ((await fleet.world.workspace(busy.id)).status, fleet.pods.calls) == (
        WorkspaceStatus.STOPPING,
        [],
    )
    fleet.world.clock.advance(1)
    await fleet.scan()
    assert (await fleet.world.workspace(busy.id)).status is WorkspaceStatus.STOPPED
    ended = await fleet.world.task(busy.id, running.id)
    assert (ended.status, ended.forced) == (TaskStatus.CANCELLED, True)


async def test_a_stopping_workspace_stops_as_soon_as_its_task_has_ended(fleet: Fleet) -> None:
    busy, running = await fleet.add_busy()
    await stop(fleet, busy.id)
    await fleet.world.end(busy.id, running.id)
    await fleet.scan()
    assert (await fleet.world.workspace(busy.id)).status is WorkspaceStatus.STOPPED
    ended = await fleet.world.task(busy.id, running.id)
    assert (ended.status, ended.forced) == (TaskStatus.CANCELLED, False)


async def test_a_stopping_workspace_stops_as_soon_as_its_agent_has_died(fleet: Fleet) -> None:
    busy, running = await fleet.add_busy()
    await stop(fleet, busy.id)
    fleet.pods.kill(busy)
    await fleet.scan()
    assert (await fleet.world.workspace(busy.id)).status is WorkspaceStatus.STOPPED
    assert (await fleet.world.task(busy.id, running.id)).status is TaskStatus.CANCELLED
