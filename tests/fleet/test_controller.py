"""The controller: which step it takes for each workspace, and what the step commits."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import pytest

from evershell.server.core import workspace_lifecycle
from evershell.server.core.bounds import CANCEL_MARGIN, FORCE_MARGIN, RECOVERY_MARGIN
from evershell.server.core.change import Change, Locked
from evershell.server.core.errors import UnavailableError
from evershell.server.core.task import Phase, Task, TaskStatus
from evershell.server.core.workspace import Workspace, WorkspaceStatus
from evershell.server.fleet.controller import END_GRACE_SECONDS
from tests.support.fleet import BOUNDS, RUN_ID, Fleet
from tests.support.waiting import settle
from tests.support.world import NOW, intent

PROVISIONING, IDLE, BUSY = WorkspaceStatus.PROVISIONING, WorkspaceStatus.IDLE, WorkspaceStatus.BUSY
STOPPING, STOPPED, FAILED = (
    WorkspaceStatus.STOPPING,
    WorkspaceStatus.STOPPED,
    WorkspaceStatus.FAILED,
)


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


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


async def test_after_a_restart_of_the_stack_a_stopping_workspace_is_stopped(fleet: Fleet) -> None:
    stopping = await fleet.add(STOPPING, run_id="run_0")
    await fleet.scan()
    assert (await fleet.world.workspace(stopping.id)).status is STOPPED
    assert "start 1" not in fleet.pods.calls


async def stop(fleet: Fleet, workspace_id: str) -> None:
    def request(locked: Locked) -> Change:
        return workspace_lifecycle.request_stop(
            locked, intent(requested_at=fleet.world.clock(), reason="workspace stopped")
        )

    await fleet.world.change(workspace_id, request)


async def test_an_idle_workspace_stops_at_once(fleet: Fleet) -> None:
    idle = await fleet.add(IDLE)
    await stop(fleet, idle.id)
    await fleet.scan()
    stopped = await fleet.world.workspace(idle.id)
    assert (stopped.status, stopped.run_id, stopped.agent_address) == (STOPPED, None, None)
    assert fleet.pods.calls == [f"end {END_GRACE_SECONDS:g}"]
    assert await fleet.world.event_types(idle.id) == ["workspace_stopped"]


async def test_a_workspace_that_never_had_a_pod_stops(fleet: Fleet) -> None:
    made = await fleet.add(PROVISIONING, run_id=None, pod=False)
    await stop(fleet, made.id)
    await fleet.scan()
    assert (await fleet.world.workspace(made.id)).status is STOPPED
    assert "start 1" not in fleet.pods.calls


async def test_a_stopping_pod_runs_until_the_deadline_of_its_task(fleet: Fleet) -> None:
    busy, running = await fleet.add_busy()
    await stop(fleet, busy.id)
    fleet.world.clock.now = (
        NOW + timedelta(seconds=workspace_lifecycle.STOP_GRACE_SECONDS) + FORCE_MARGIN
    )
    await fleet.scan()
    assert ((await fleet.world.workspace(busy.id)).status, fleet.pods.calls) == (STOPPING, [])
    fleet.world.clock.advance(1)
    await fleet.scan()
    assert (await fleet.world.workspace(busy.id)).status is STOPPED
    ended = await fleet.world.task(busy.id, running.id)
    assert (ended.status, ended.forced) == (TaskStatus.CANCELLED, True)


async def test_an_overdue_force_deadline_ends_the_pod_of_a_live_agent(fleet: Fleet) -> None:
    busy, running = await fleet.add_busy()
    await fleet.world.cancel(busy.id, force_after_seconds=1)
    fleet.world.clock.now = NOW + timedelta(seconds=1) + FORCE_MARGIN
    await fleet.scan()
    assert fleet.pods.calls == []
    fleet.world.clock.advance(0.1)
    await fleet.scan()
    ended, failed = (
        await fleet.world.task(busy.id, running.id),
        await fleet.world.workspace(busy.id),
    )
    assert (ended.status, ended.forced, ended.reason) == (
        TaskStatus.CANCELLED,
        True,
        "its agent did not interrupt the task in time",
    )
    assert (failed.status, fleet.pods.calls) == (FAILED, ["end 0"])


async def test_after_an_outage_an_agent_has_time_to_commit(fleet: Fleet) -> None:
    busy, _ = await fleet.add_busy(lease_expires_at=NOW + timedelta(hours=1))
    await fleet.world.cancel(busy.id, force_after_seconds=0)
    fleet.world.clock.now = NOW + timedelta(seconds=7)
    fleet.answering_since = fleet.world.clock.now - RECOVERY_MARGIN
    await fleet.scan()
    assert fleet.pods.calls == []
    fleet.world.clock.advance(0.1)
    await fleet.scan()
    assert fleet.pods.calls == ["end 0"]


async def test_a_failed_scan_counts_as_an_outage(fleet: Fleet) -> None:
    busy, _ = await fleet.add_busy(lease_expires_at=NOW + timedelta(hours=1))
    await fleet.world.cancel(busy.id, force_after_seconds=0)
    fleet.world.clock.now = NOW + timedelta(seconds=7)
    list_cancellations = fleet.world.store.list_cancellations

    async def fail_once() -> Sequence[tuple[Workspace, Task]]:
        fleet.world.store.list_cancellations = list_cancellations  # type: ignore[method-assign]
        raise UnavailableError("frozen")

    fleet.world.store.list_cancellations = fail_once  # type: ignore[method-assign]
    async with fleet.running():
        fleet.changes.queue.put_nowait(set())
        await settle()
    assert fleet.pods.calls == []


async def test_repeated_outages_postpone_a_deadline_by_one_lease_at_most(fleet: Fleet) -> None:
    busy, _ = await fleet.add_busy(lease_expires_at=NOW + timedelta(hours=1))
    await fleet.world.cancel(busy.id, force_after_seconds=0)
    fleet.world.clock.now = NOW + FORCE_MARGIN + timedelta(seconds=BOUNDS.lease_seconds + 0.1)
    fleet.answering_since = fleet.world.clock.now
    await fleet.scan()
    assert fleet.pods.calls == ["end 0"]


async def test_a_cancelled_task_that_exceeds_an_iteration_ends_with_its_pod(fleet: Fleet) -> None:
    busy, running = await fleet.add_busy(lease_expires_at=NOW + timedelta(hours=1))
    await fleet.world.cancel(busy.id)
    limits = timedelta(seconds=BOUNDS.model_timeout_seconds + BOUNDS.tool_timeout_seconds)
    fleet.world.clock.now = NOW + limits + CANCEL_MARGIN
    await fleet.scan()
    assert fleet.pods.calls == []
    fleet.world.clock.advance(0.1)
    await fleet.scan()
    ended = await fleet.world.task(busy.id, running.id)
    assert (ended.status, ended.forced) == (TaskStatus.CANCELLED, False)
    assert (
        ended.reason == "its agent did not end the cancelled task within the limits of an iteration"
    )


@pytest.mark.parametrize(
    ("cancelled", "status"), [(False, TaskStatus.FAILED), (True, TaskStatus.CANCELLED)]
)
async def test_a_task_that_its_heartbeats_do_not_name_ends_with_its_pod(
    fleet: Fleet, cancelled: bool, status: TaskStatus
) -> None:
    busy, running = await fleet.add_busy(cancelled=cancelled)

    async def beat(task_id: str) -> None:
        await fleet.world.change(
            busy.id,
            lambda locked: workspace_lifecycle.heartbeat(
                locked, 1, task_id, Phase.NONE, 60, fleet.world.clock()
            ),
        )

    await beat("")
    fleet.world.clock.advance(BOUNDS.lease_seconds - 1)
    await beat(running.id)
    await beat("task_other")
    fleet.world.clock.advance(BOUNDS.lease_seconds)
    await beat("")
    await fleet.scan()
    assert fleet.pods.calls == []
    fleet.world.clock.advance(0.1)
    await fleet.scan()
    ended, failed = (
        await fleet.world.task(busy.id, running.id),
        await fleet.world.workspace(busy.id),
    )
    assert (ended.status, ended.reason) == (
        status,
        "its agent did not work on the task that it was given",
    )
    assert (failed.status, failed.task_unnamed_since) == (FAILED, None)


async def test_a_pod_whose_task_ended_during_the_scan_is_not_ended(fleet: Fleet) -> None:
    busy, running = await fleet.add_busy()
    await fleet.world.cancel(busy.id, force_after_seconds=0)
    fleet.world.clock.advance(3)
    list_cancellations = fleet.world.store.list_cancellations

    async def list_then_end() -> Sequence[tuple[Workspace, Task]]:
        listed = await list_cancellations()
        await fleet.world.end(busy.id, running.id)
        return listed

    fleet.world.store.list_cancellations = list_then_end  # type: ignore[method-assign]
    await fleet.scan()
    assert ((await fleet.world.workspace(busy.id)).status, fleet.pods.calls) == (IDLE, [])


async def test_a_pod_whose_lease_was_renewed_during_the_scan_is_not_ended(fleet: Fleet) -> None:
    """A controller that was frozen continues with outdated rows."""
    idle = await fleet.add(IDLE, lease_expires_at=NOW)
    fleet.world.clock.advance(3)
    list_expired = fleet.world.store.list_expired_leases

    async def list_then_renew() -> Sequence[Workspace]:
        listed = await list_expired()
        await fleet.world.store.renew_lease(idle.id, 1, 60)
        return listed

    fleet.world.store.list_expired_leases = list_then_renew  # type: ignore[method-assign]
    await fleet.scan()
    assert ((await fleet.world.workspace(idle.id)).status, fleet.pods.calls) == (IDLE, [])


async def test_a_stopping_workspace_stops_as_soon_as_its_task_has_ended(fleet: Fleet) -> None:
    busy, running = await fleet.add_busy()
    await stop(fleet, busy.id)
    await fleet.world.end(busy.id, running.id)
    await fleet.scan()
    assert (await fleet.world.workspace(busy.id)).status is STOPPED
    ended = await fleet.world.task(busy.id, running.id)
    assert (ended.status, ended.forced) == (TaskStatus.CANCELLED, False)


async def test_a_stopping_workspace_stops_as_soon_as_its_agent_has_died(fleet: Fleet) -> None:
    busy, running = await fleet.add_busy()
    await stop(fleet, busy.id)
    fleet.pods.kill(busy)
    await fleet.scan()
    assert (await fleet.world.workspace(busy.id)).status is STOPPED
    assert (await fleet.world.task(busy.id, running.id)).status is TaskStatus.CANCELLED


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


async def test_an_announced_workspace_is_reconciled_before_the_next_scan(fleet: Fleet) -> None:
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
