"""The controller: which step it takes for each workspace, and what the step commits."""

from dataclasses import replace
from datetime import timedelta

import pytest

from evershell.core.task import TaskStatus
from evershell.core.workspace import Workspace, WorkspaceStatus
from evershell.fleet.controller import END_GRACE_SECONDS
from tests.support.fleet import BOUNDS, RUN_ID, Fleet
from tests.support.waiting import settle
from tests.support.world import NOW

PROVISIONING, IDLE, BUSY = WorkspaceStatus.PROVISIONING, WorkspaceStatus.IDLE, WorkspaceStatus.BUSY
STOPPED, FAILED = WorkspaceStatus.STOPPED, WorkspaceStatus.FAILED


async def test_a_new_workspace_is_placed_and_started(fleet: Fleet) -> None:
    made = await fleet.add(PROVISIONING, run_id=None, pod=False)
    await fleet.scan()
    assert fleet.pods.calls == ["end 0", "start 1"]
    assert (await fleet.world.workspace(made.id)).run_id == RUN_ID


async def test_the_pods_are_synchronized_once_a_term_and_before_any_step(fleet: Fleet) -> None:
    await fleet.add(PROVISIONING, run_id=None, pod=False)
    seen: list[int] = []
    fleet.pods.on_end = lambda: seen.append(fleet.pods.syncs)
    async with fleet.running():
        await fleet.next_scan()
    assert (seen, fleet.pods.syncs) == ([1], 1)
    await fleet.scan()
    assert fleet.pods.syncs == 2


async def test_a_controller_whose_term_has_ended_starts_and_ends_no_pod(fleet: Fleet) -> None:
    """It was frozen, and continues with what it read before."""
    fresh = await fleet.add(PROVISIONING, pod=False)
    fleet.pods.never_run.add(fresh.id)
    lost = await fleet.add(IDLE)
    fleet.pods.kill(lost)
    await fleet.add(WorkspaceStatus.STOPPING)
    await fleet.add(IDLE, run_id="run_0")
    fleet.leads = False
    await fleet.scan()
    assert fleet.pods.calls == []
    assert (await fleet.world.workspace(lost.id)).status is IDLE


async def test_a_lost_agent_fails_with_the_explanation_of_the_backend(fleet: Fleet) -> None:
    made = await fleet.add(IDLE)
    fleet.pods.explanation = "its agent ran out of memory"
    fleet.pods.kill(made)
    await fleet.scan()
    assert (await fleet.world.workspace(made.id)).status_reason == "its agent ran out of memory"


async def test_an_agent_that_does_not_register_fails_with_the_explanation(fleet: Fleet) -> None:
    made = await fleet.add(PROVISIONING)
    fleet.pods.explanation = "its image cannot be pulled: not found"
    fleet.world.clock.now = NOW + timedelta(seconds=BOUNDS.start_seconds + 1)
    await fleet.scan()
    assert (await fleet.world.workspace(made.id)).status_reason == (
        "its agent did not register within 30 s: its image cannot be pulled: not found"
    )


async def test_nothing_is_ended_before_the_first_pod_of_a_workspace(fleet: Fleet) -> None:
    made = await fleet.add(PROVISIONING, run_id=None, pod=False)
    fleet.pods.never_run.add(made.id)
    await fleet.scan()
    assert fleet.pods.calls == ["start 1"]


async def test_a_pod_is_started_once(fleet: Fleet) -> None:
    await fleet.add(PROVISIONING)
    await fleet.scan()
    await fleet.scan()
    assert fleet.pods.calls == []


async def test_a_pod_that_cannot_start_fails_its_workspace(fleet: Fleet) -> None:
    made = await fleet.add(PROVISIONING, run_id=None, pod=False)
    fleet.pods.start_error = OSError(28, "No space left on device")
    await fleet.scan()
    failed = await fleet.world.workspace(made.id)
    assert (failed.status, failed.run_id) == (FAILED, None)
    assert "could not be started: No space left on device" in failed.status_reason
    assert fleet.pods.calls == ["end 0", "start 1", "end 0"]


async def test_a_pod_that_ends_before_it_registers_fails_with_its_last_log_line(
    fleet: Fleet,
) -> None:
    made = await fleet.add(PROVISIONING)
    fleet.pods.kill(made)
    fleet.pods.last_log_line = "ImportError: no module " + "x" * 1_000
    await fleet.scan()
    failed = await fleet.world.workspace(made.id)
    assert failed.status is FAILED
    assert (
        "ended before it registered: ImportError" in failed.status_reason
        and len(failed.status_reason) < 400
    )


async def test_a_pod_whose_folder_was_deleted_fails_with_that_reason(fleet: Fleet) -> None:
    busy, running = await fleet.add_busy()
    fleet.pods.files_exist = False
    await fleet.scan()
    assert fleet.pods.calls == ["end 0"]
    assert (
        await fleet.world.workspace(busy.id)
    ).status_reason == "its folder was deleted or replaced"
    ended = await fleet.world.task(busy.id, running.id)
    assert (ended.status, ended.reason) == (TaskStatus.FAILED, "its folder was deleted or replaced")


@pytest.mark.parametrize(("seconds", "status"), [(0, PROVISIONING), (1, FAILED)])
async def test_a_pod_that_does_not_register_in_time_fails(
    fleet: Fleet, seconds: int, status: WorkspaceStatus
) -> None:
    made = await fleet.add(PROVISIONING)
    fleet.world.clock.now = NOW + timedelta(seconds=BOUNDS.start_seconds + seconds)
    await fleet.scan()
    assert (await fleet.world.workspace(made.id)).status is status
    assert fleet.pods.is_alive(made) is (status is PROVISIONING)


@pytest.mark.parametrize("seconds", [0, 1])
async def test_an_agent_is_lost_when_its_lease_has_expired(fleet: Fleet, seconds: int) -> None:
    busy, running = await fleet.add_busy(lease_expires_at=NOW)
    fleet.world.clock.advance(seconds)
    await fleet.scan()
    assert (await fleet.world.workspace(busy.id)).status is (FAILED if seconds else BUSY)
    assert (await fleet.world.task(busy.id, running.id)).status is (
        TaskStatus.FAILED if seconds else TaskStatus.RUNNING
    )
    assert fleet.pods.calls == (["end 0"] if seconds else [])


@pytest.mark.parametrize(
    ("cancelled", "status"), [(False, TaskStatus.FAILED), (True, TaskStatus.CANCELLED)]
)
async def test_the_task_of_a_dead_agent_ends_after_all_processes_of_the_pod(
    fleet: Fleet, cancelled: bool, status: TaskStatus
) -> None:
    busy, running = await fleet.add_busy(cancelled=cancelled)
    fleet.pods.kill(busy)
    seen: list[int] = []
    fleet.pods.on_end = lambda: seen.append(fleet.world.store._workspaces[busy.id].last_seq)
    await fleet.scan()
    events = await fleet.world.events(busy.id)
    assert (await fleet.world.task(busy.id, running.id)).status is status
    assert [event.type for event in events[-2:]] == ["task_completed", "workspace_failed"]
    assert seen == [len(events) - 2]
    assert events[-2].payload["work_stopped"] == "yes"


async def test_work_that_may_still_run_is_not_reported_as_stopped(fleet: Fleet) -> None:
    busy, _ = await fleet.add_busy()
    fleet.pods.kill(busy)
    fleet.pods.ends_all = False
    await fleet.scan()
    assert (await fleet.world.events(busy.id))[-2].payload["work_stopped"] == "unknown"


async def test_an_agent_that_dies_is_noticed_at_once(fleet: Fleet) -> None:
    idle = await fleet.add(IDLE)
    async with fleet.running():
        assert (await fleet.world.workspace(idle.id)).status is IDLE
        fleet.pods.kill(idle)
        await settle()
        assert (await fleet.world.workspace(idle.id)).status is FAILED


@pytest.mark.parametrize(
    ("cancelled", "status"), [(False, TaskStatus.FAILED), (True, TaskStatus.CANCELLED)]
)
async def test_after_a_restart_of_the_stack_a_workspace_gets_a_new_pod(
    fleet: Fleet, cancelled: bool, status: TaskStatus
) -> None:
    busy, running = await fleet.add_busy(run_id="run_0", cancelled=cancelled)
    await fleet.scan()
    placed = await fleet.world.workspace(busy.id)
    assert (placed.status, placed.epoch, placed.run_id, placed.current_task_id) == (
        PROVISIONING,
        2,
        RUN_ID,
        None,
    )
    assert (await fleet.world.task(busy.id, running.id)).status is status
    assert fleet.pods.calls == [f"end {END_GRACE_SECONDS:g}", "end 0", "start 2"]


async def test_after_a_restart_work_that_may_still_run_is_not_reported_as_stopped(
    fleet: Fleet,
) -> None:
    busy, _ = await fleet.add_busy(run_id="run_0")
    fleet.pods.ends_all = False
    await fleet.scan()
    (end,) = [
        event for event in await fleet.world.events(busy.id) if event.type == "task_completed"
    ]
    assert end.payload["work_stopped"] == "unknown"


@pytest.mark.parametrize("status", [STOPPED, FAILED])
async def test_a_workspace_that_has_ended_is_not_changed(
    fleet: Fleet, status: WorkspaceStatus
) -> None:
    ended = await fleet.add(status)
    async with fleet.running():
        fleet.changes.queue.put_nowait({ended.id, "ws_unknown"})
        await settle()
    assert fleet.pods.calls == []
    assert await fleet.world.workspace(ended.id) == ended


async def test_a_published_workspace_is_reconciled_before_the_next_scan(fleet: Fleet) -> None:
    async with fleet.running():
        made = await fleet.add(PROVISIONING, run_id=None, pod=False)
        fleet.changes.queue.put_nowait({made.id})
        await settle()
        assert fleet.pods.calls == ["end 0", "start 1"]


async def test_the_controller_continues_after_a_database_outage(fleet: Fleet) -> None:
    made = await fleet.add(PROVISIONING, run_id=None, pod=False)
    fleet.world.store.unavailable = True
    async with fleet.running():
        assert fleet.pods.calls == []
        fleet.world.store.unavailable = False
        fleet.changes.queue.put_nowait(set())
        await settle()
        assert fleet.pods.calls == ["end 0", "start 1"]
    assert (await fleet.world.workspace(made.id)).run_id == RUN_ID


async def test_an_error_in_one_workspace_does_not_affect_the_others(fleet: Fleet) -> None:
    bad = await fleet.add(PROVISIONING, run_id=None, pod=False)
    good = await fleet.add(PROVISIONING, run_id=None, pod=False)
    start = fleet.pods.start

    async def start_unless_bad(workspace: Workspace) -> None:
        if workspace.id == bad.id:
            raise ZeroDivisionError
        await start(workspace)

    fleet.pods.start = start_unless_bad  # type: ignore[method-assign]
    await fleet.scan()
    assert fleet.pods.is_alive(good) and not fleet.pods.is_alive(bad)


async def test_a_late_decision_about_an_earlier_epoch_changes_nothing(fleet: Fleet) -> None:
    """The workspace was stopped and resumed while its pod was being ended."""
    idle = await fleet.add(IDLE)
    fleet.pods.kill(idle)
    resumed = replace(idle, epoch=2, status=PROVISIONING, run_id=None)

    def resume() -> None:
        fleet.world.store._workspaces[idle.id] = resumed

    fleet.pods.on_end = resume
    await fleet.scan()
    assert await fleet.world.workspace(idle.id) == resumed


async def test_a_pod_of_an_earlier_epoch_is_not_started(fleet: Fleet) -> None:
    made = await fleet.add(PROVISIONING, pod=False)
    later = replace(made, epoch=made.epoch + 1)

    def begin_later_epoch() -> None:
        fleet.world.store._workspaces[made.id] = later
        fleet.pods.on_end = lambda: None

    fleet.pods.on_end = begin_later_epoch
    await fleet.scan()
    assert f"start {made.epoch}" not in fleet.pods.calls
