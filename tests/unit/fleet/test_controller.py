"""The controller: the step that it takes for each workspace, and its metrics.

test_due.py tests what the controller reads, and the bounds that it enforces.
"""

import asyncio
import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from evershell.core import task_lifecycle, workspace_lifecycle
from evershell.core.bounds import FORCE_MARGIN
from evershell.core.change import Change, Locked
from evershell.core.due import Kind
from evershell.core.errors import Failure, UnavailableError
from evershell.core.task import Task, TaskLimits, TaskStarted, TaskStatus
from evershell.core.workspace import Workspace, WorkspaceStatus
from evershell.fleet import work
from evershell.fleet.limits import Limits
from evershell.fleet.steps import END_GRACE_SECONDS
from evershell.telemetry.metrics import Metrics
from tests.support.fleet import BOUNDS, RUN_ID, Fleet
from tests.support.store.due import due
from tests.support.waiting import settle
from tests.support.world import NOW, USER, caller, intent, task

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
    """The controller was frozen, and continues with rows that it read before."""
    fresh = await fleet.add(PROVISIONING, pod=False)
    fleet.pods.never_run.add(fresh.id)
    lost = await fleet.add(IDLE)
    fleet.pods.kill(lost)
    await fleet.add(WorkspaceStatus.STOPPING)
    await fleet.add(IDLE, run_id="run_0")
    await fleet.add(WorkspaceStatus.DELETING, run_id=None, pod=False)
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
    made = await fleet.add(PROVISIONING, pod=False)
    fleet.pods.last_log_line = "ImportError: no module " + "x" * 1_000
    async with fleet.running():
        fleet.pods.kill(made)
        await fleet.next_scan()
    failed = await fleet.world.workspace(made.id)
    assert failed.status is FAILED
    assert (
        "ended before it registered: ImportError" in failed.status_reason
        and len(failed.status_reason) < 400
    )


async def test_the_reason_of_an_agent_that_cannot_start_is_whole(fleet: Fleet) -> None:
    made = await fleet.add(PROVISIONING, pod=False)
    reason = "it cannot be read. " + "x" * 900 + " Set POD_ISOLATION=none."
    fleet.pods.last_log_line = json.dumps({"event": "no_agent", "reason": reason, "epoch": 1})
    async with fleet.running():
        fleet.pods.kill(made)
        await fleet.next_scan()
    failed = await fleet.world.workspace(made.id)
    assert failed.status_reason == f"its agent ended before it registered: {reason}"


async def test_a_start_that_another_controller_did_not_finish_is_repeated(fleet: Fleet) -> None:
    """The other controller recorded the start, and died before the agent ran."""
    made = await fleet.add(PROVISIONING)
    fleet.pods.kill(made)
    await fleet.scan()
    assert fleet.pods.calls == ["end 0", "start 1"]
    assert (await fleet.world.workspace(made.id)).status is PROVISIONING


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
    fleet.pods.on_end = lambda: seen.append(fleet.world.store.workspaces[busy.id].last_seq)
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
        fleet.world.store.workspaces[idle.id] = resumed

    fleet.pods.on_end = resume
    await fleet.scan()
    assert await fleet.world.workspace(idle.id) == resumed


async def test_a_pod_of_an_earlier_epoch_is_not_started(fleet: Fleet) -> None:
    made = await fleet.add(PROVISIONING, pod=False)
    later = replace(made, epoch=made.epoch + 1)

    def begin_later_epoch() -> None:
        fleet.world.store.workspaces[made.id] = later
        fleet.pods.on_end = lambda: None

    fleet.pods.on_end = begin_later_epoch
    await fleet.scan()
    assert f"start {made.epoch}" not in fleet.pods.calls


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


async def test_a_stopping_pod_is_not_ended_while_a_worker_is_silent(fleet: Fleet) -> None:
    """The worker fell silent after the scan."""
    busy, _ = await fleet.add_busy()
    await stop(fleet, busy.id)
    fleet.world.clock.now = NOW + timedelta(seconds=11) + FORCE_MARGIN
    read = [[0.0], [1.3]]

    async def silences() -> list[float]:
        return read.pop(0)

    fleet.world.store.worker_silences = silences  # type: ignore[method-assign]
    await fleet.scan()
    assert (fleet.pods.calls, read) == ([], [])
    assert (await fleet.world.workspace(busy.id)).status is WorkspaceStatus.STOPPING


@pytest.mark.parametrize("is_confirmed", [True, False])
async def test_a_task_wakes_a_workspace_whose_pod_was_ended_by_force(
    fleet: Fleet, is_confirmed: bool
) -> None:
    """The forced end of the pod, confirmed or not, is repeated before the next pod starts."""
    busy, _ = await fleet.add_busy(lease_expires_at=NOW + timedelta(hours=1))
    await fleet.world.cancel(busy.id, force_after_seconds=0)
    fleet.world.clock.now = NOW + FORCE_MARGIN + timedelta(seconds=1)
    fleet.pods.ends_all = is_confirmed
    async with fleet.running():
        suspended = await fleet.world.workspace(busy.id)
        assert suspended.status is WorkspaceStatus.SUSPENDED
        assert suspended.run_id == (None if is_confirmed else RUN_ID)
        next_task = task(busy.id, created_at=fleet.world.clock())
        await fleet.world.change(
            busy.id, lambda locked: task_lifecycle.submit(locked, next_task, USER)
        )
        await fleet.next_scan()
        await fleet.next_scan()
    assert fleet.pods.calls == ["end 0", "end 0", "start 2"]
    assert [epoch for _, epoch in fleet.pods.alive] == [2]


async def test_a_forced_end_whose_record_fails_once_leaves_a_suspended_workspace(
    fleet: Fleet,
) -> None:
    """The controller's next pass finds that the pod has ended, but not why."""
    busy, running = await fleet.add_busy(lease_expires_at=NOW + timedelta(hours=1))
    await fleet.world.cancel(busy.id, force_after_seconds=0)
    fleet.world.clock.now = NOW + FORCE_MARGIN + timedelta(seconds=1)
    transition = fleet.world.store.transition

    async def fail_once(*_: Any) -> None:
        fleet.world.store.transition = transition  # type: ignore[method-assign]
        raise UnavailableError("frozen")

    def on_end() -> None:
        fleet.pods.on_end = lambda: None
        fleet.world.store.transition = fail_once  # type: ignore[assignment, method-assign]

    fleet.pods.on_end = on_end
    await fleet.scan()
    assert (await fleet.world.workspace(busy.id)).status is WorkspaceStatus.BUSY
    assert fleet.pods.alive == {}
    await fleet.scan()
    assert (await fleet.world.workspace(busy.id)).status is WorkspaceStatus.SUSPENDED
    assert (await fleet.world.task(busy.id, running.id)).forced


async def test_a_forced_end_that_the_agent_commits_meanwhile_leaves_a_suspended_workspace(
    fleet: Fleet,
) -> None:
    busy, running = await fleet.add_busy(lease_expires_at=NOW + timedelta(hours=1))
    await fleet.world.cancel(busy.id, force_after_seconds=0)
    fleet.world.clock.now = NOW + FORCE_MARGIN + timedelta(seconds=1)
    commits: list[asyncio.Task[Any]] = []
    fleet.pods.on_end = lambda: commits.append(
        asyncio.create_task(fleet.world.end(busy.id, running.id))
    )
    await fleet.scan()
    assert [each.done() for each in commits] == [True]
    assert (await fleet.world.task(busy.id, running.id)).status is TaskStatus.CANCELLED
    assert (await fleet.world.workspace(busy.id)).status is WorkspaceStatus.SUSPENDED


async def test_a_stopping_workspace_stops_as_soon_as_its_task_has_ended(fleet: Fleet) -> None:
    busy, running = await fleet.add_busy()
    await stop(fleet, busy.id)
    await fleet.world.end(busy.id, running.id)
    await fleet.scan()
    assert (await fleet.world.workspace(busy.id)).status is WorkspaceStatus.STOPPED
    ended = await fleet.world.task(busy.id, running.id)
    assert (ended.status, ended.forced) == (TaskStatus.CANCELLED, False)


async def delete(fleet: Fleet, workspace_id: str) -> None:
    def request(locked: Locked) -> Change:
        return workspace_lifecycle.request_delete(
            locked, intent(requested_at=fleet.world.clock(), reason="workspace deleted")
        )

    await fleet.world.change(workspace_id, request)


@pytest.mark.parametrize(
    ("status", "run_id", "ends"),
    [(IDLE, RUN_ID, True), (IDLE, "run_0", True), (STOPPED, None, False), (FAILED, None, False)],
)
async def test_a_deleted_workspace_is_removed_after_its_pod(
    fleet: Fleet, status: WorkspaceStatus, run_id: str | None, ends: bool
) -> None:
    other = await fleet.add(IDLE)
    made = await fleet.add(status, run_id=run_id, pod=ends)
    await delete(fleet, made.id)
    async with fleet.running():
        await fleet.next_scan()
    assert fleet.pods.calls == [f"end {END_GRACE_SECONDS:g}"] * ends + ["end 0", "remove"]
    assert await fleet.world.store.get_workspace(made.id) is None
    assert await fleet.world.store.find_deleted_workspace(made.id, made.org_id) is not None
    assert await fleet.world.workspace(other.id) == other


async def test_a_deletion_waits_for_the_task_then_for_the_files_and_continues(
    fleet: Fleet,
) -> None:
    busy, running = await fleet.add_busy()
    await delete(fleet, busy.id)
    await fleet.scan()
    assert fleet.pods.calls == []
    await fleet.world.end(busy.id, running.id)
    fleet.pods.removes_all = False
    async with fleet.running():
        await fleet.next_scan()
    assert (await fleet.world.workspace(busy.id)).awaits_removal
    fleet.pods.removes_all = True
    # This scan stands for a scan by another controller.
    await fleet.scan()
    assert await fleet.world.store.get_workspace(busy.id) is None


async def test_a_deleted_workspace_whose_pod_was_being_started_leaves_no_pod(fleet: Fleet) -> None:
    made = await fleet.add(PROVISIONING, run_id=None, pod=False)
    async with fleet.running():
        await delete(fleet, made.id)
        assert fleet.pods.alive
        await fleet.next_scan()
        await fleet.next_scan()
    assert not fleet.pods.alive
    assert await fleet.world.store.get_workspace(made.id) is None


async def test_few_workspaces_are_removed_at_once_and_the_pods_of_others_end(fleet: Fleet) -> None:
    """The removals of one organization take long while another organization's agent is overdue."""
    removed = [await fleet.add(STOPPED, run_id=None, pod=False) for _ in range(10)]
    for each in removed:
        await delete(fleet, each.id)
    busy, running = await fleet.add_busy(org_id="org_b")
    remove, begun, go_on = fleet.pods.remove, list[str](), asyncio.Event()

    async def remove_slowly(workspace_id: str) -> bool:
        begun.append(workspace_id)
        await go_on.wait()
        return await remove(workspace_id)

    fleet.pods.remove = remove_slowly  # type: ignore[method-assign]
    async with fleet.running():
        await fleet.next_scan()
        assert len(begun) == work.FEW
        await fleet.world.cancel(busy.id, caller(org_id="org_b"), force_after_seconds=1)
        fleet.world.clock.now += timedelta(seconds=1.1) + FORCE_MARGIN
        await fleet.next_scan()
        assert (await fleet.world.task(busy.id, running.id)).status is TaskStatus.CANCELLED
        assert len(begun) == work.FEW
        go_on.set()
        await fleet.next_scan()
    assert sorted(begun) == sorted(each.id for each in removed)


async def test_many_pods_that_end_slowly_do_not_delay_those_of_others(fleet: Fleet) -> None:
    stopping = {(await fleet.add(WorkspaceStatus.STOPPING)).id for _ in range(500)}
    busy, running = await fleet.add_busy(org_id="org_b")
    end, begun, go_on = fleet.pods.end, set[str](), asyncio.Event()

    async def end_slowly(workspace: Workspace, grace_seconds: float) -> bool:
        begun.add(workspace.id)
        if workspace.id in stopping:
            await go_on.wait()
        return await end(workspace, grace_seconds)

    fleet.pods.end = end_slowly  # type: ignore[method-assign]
    await fleet.world.cancel(busy.id, caller(org_id="org_b"), force_after_seconds=1)
    fleet.world.clock.now += timedelta(seconds=1.1) + FORCE_MARGIN
    async with fleet.running():
        assert begun == stopping | {busy.id}
        assert (await fleet.world.task(busy.id, running.id)).status is TaskStatus.CANCELLED
        go_on.set()
        await settle()
    assert (await fleet.world.workspace(min(stopping))).status is STOPPED


async def limited(fleet: Fleet, **limits: float) -> tuple[Workspace, Task]:
    idle = await fleet.add(WorkspaceStatus.IDLE)
    new = task(idle.id, limits=TaskLimits(**limits))  # type: ignore[arg-type]
    world = fleet.world
    await world.change(idle.id, lambda locked: task_lifecycle.submit(locked, new, USER))
    await world.commit(idle.id, new.id, TaskStarted())
    return idle, new


async def test_a_task_is_cancelled_and_signalled_at_its_limit(fleet: Fleet) -> None:
    at, new = await limited(fleet, max_duration_seconds=60)
    other, unlimited = await fleet.add_busy()
    async with fleet.running():
        fleet.world.clock.advance(59)
        await fleet.next_scan()
        assert (await fleet.world.task(at.id, new.id)).cancel is None
        fleet.world.clock.advance(1)
        await fleet.next_scan()
        cancel = (await fleet.world.task(at.id, new.id)).cancel
        assert cancel is not None and cancel.requested_by == "system:limit"
        assert fleet.world.agents.cancelled == [new.id]
        await fleet.next_scan()
        await settle()
    assert (await fleet.world.event_types(at.id)).count("task_cancel_requested") == 1
    assert (await fleet.world.task(other.id, unlimited.id)).cancel is None


async def test_the_next_leader_finds_what_was_reached_without_one(fleet: Fleet) -> None:
    at, new = await limited(fleet, max_duration_seconds=60)
    fleet.world.clock.advance(3600)
    await fleet.scan()
    assert (await fleet.world.task(at.id, new.id)).cancel is not None


async def test_the_task_of_a_frozen_agent_ends_cancelled(fleet: Fleet) -> None:
    """A task that a limit cancels has the same bounds as a task that a caller cancels."""
    at, new = await limited(fleet, max_duration_seconds=1)
    fleet.world.agents.reachable = False
    async with fleet.running():
        fleet.world.clock.advance(1)
        await fleet.next_scan()
        fleet.world.clock.advance(BOUNDS.model_timeout_seconds + BOUNDS.tool_timeout_seconds + 3600)
        await fleet.next_scan()
        await settle()
    ended = await fleet.world.task(at.id, new.id)
    assert (ended.status, ended.reason) == (
        TaskStatus.CANCELLED,
        "its agent did not end the cancelled task within the limits of an iteration",
    )


async def limited_tree(fleet: Fleet) -> tuple[tuple[Workspace, Task], tuple[Workspace, Task]]:
    """A root and its child, both running. They reach their limit after 60 s."""
    limits = TaskLimits(max_duration_seconds=60, include_descendants=True)
    (at, root), (below, child) = await fleet.add_busy(), await fleet.add_busy()
    limited_root = replace(root, limits=limits, in_limited_tree=True)
    limited_child = replace(child, ancestor_ids=(root.id,), in_limited_tree=True)
    await fleet.world.change(at.id, lambda locked: Change(locked.workspace, limited_root))
    await fleet.world.change(below.id, lambda locked: Change(locked.workspace, limited_child))
    return (at, root), (below, child)


async def test_a_root_is_signalled_at_the_limit_of_its_tree_after_the_end_of_its_child(
    fleet: Fleet,
) -> None:
    """The controller itself signals the root, for which the store publishes nothing."""
    world, signalled = fleet.world, list[str]()
    (_, root), (below, child) = await limited_tree(fleet)
    await world.end(below.id, child.id)
    world.clock.advance(60)
    limits = Limits(world.store, world.clock, lambda _, task: signalled.append(task.id))
    (tree,) = await due(world.store, Kind.TREE_LIMIT, now=world.clock())
    await limits.cancel_tree(tree)
    assert signalled == [root.id]


async def test_a_tree_is_cancelled_and_signalled_at_its_limit_after_the_end_of_its_root(
    fleet: Fleet,
) -> None:
    (at, root), (below, child) = await limited_tree(fleet)
    await fleet.world.end(at.id, root.id)
    async with fleet.running():
        fleet.world.clock.advance(59)
        await fleet.next_scan()
        assert (await fleet.world.task(below.id, child.id)).cancel is None
        fleet.world.clock.advance(1)
        await fleet.next_scan()
        cancel = (await fleet.world.task(below.id, child.id)).cancel
        assert cancel is not None and cancel.requested_by == "system:limit"
        assert fleet.world.agents.cancelled == [child.id]
        await fleet.next_scan()
        await settle()
    assert (await fleet.world.event_types(below.id)).count("task_cancel_requested") == 1
    assert (await fleet.world.task(at.id, root.id)).status is TaskStatus.COMPLETED


async def test_few_limits_are_applied_at_once_and_a_locked_workspace_delays_no_other(
    fleet: Fleet,
) -> None:
    """Many tasks of one organization reach a limit. Another organization has cancelled a task."""
    reached = [await limited(fleet, max_duration_seconds=40) for _ in range(10)]
    busy, running = await fleet.add_busy(org_id="org_b")
    (locked, _), transition, open_now, most = reached[0], fleet.world.store.transition, 0, 0

    async def transition_slowly(workspace_id: str, *arguments: Any) -> Change | None:
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        await asyncio.sleep(0)
        open_now -= 1
        if workspace_id == locked.id:
            raise UnavailableError("the workspace is locked")
        return await transition(workspace_id, *arguments)

    fleet.world.agents.reachable = False
    with pytest.raises(Failure):
        await fleet.world.cancel(busy.id, caller(org_id="org_b"))
    fleet.world.agents.reachable = True
    fleet.world.agents.cancelled.clear()
    fleet.world.store.transition = transition_slowly  # type: ignore[method-assign, assignment]
    async with fleet.running():
        fleet.world.clock.advance(40)
        await fleet.next_scan()
        assert most == work.FEW
        assert running.id in fleet.world.agents.cancelled
        for at, new in reached:
            is_cancelled = (await fleet.world.task(at.id, new.id)).cancel is not None
            assert is_cancelled is (at is not locked)


async def test_an_outage_while_a_limit_is_applied_ends_no_agent(fleet: Fleet) -> None:
    """The database hangs for 4 s and is back before the next read."""
    at, _ = await limited(fleet, max_duration_seconds=60)
    busy, running = await fleet.add_busy(org_id="org_b")
    transition, hangs = fleet.world.store.transition, True

    async def hang_once(workspace_id: str, *arguments: Any) -> Change | None:
        nonlocal hangs
        if hangs and workspace_id == at.id:
            hangs = False
            fleet.world.clock.advance(4)
            raise UnavailableError("no answer")
        return await transition(workspace_id, *arguments)

    fleet.world.store.transition = hang_once  # type: ignore[method-assign, assignment]
    async with fleet.running():
        fleet.world.clock.advance(59)
        await fleet.world.cancel(busy.id, caller(org_id="org_b"), force_after_seconds=2)
        fleet.world.clock.advance(1)
        await fleet.next_scan()
        assert not hangs
        assert (await fleet.world.task(busy.id, running.id)).status is TaskStatus.RUNNING


async def test_an_outage_does_not_lose_a_limit(fleet: Fleet) -> None:
    at, new = await limited(fleet, max_duration_seconds=60)
    async with fleet.running():
        fleet.world.clock.advance(60)
        fleet.world.store.unavailable = True
        await fleet.next_scan()
        fleet.world.store.unavailable = False
        await fleet.next_scan()
    assert (await fleet.world.task(at.id, new.id)).cancel is not None


@pytest.fixture
def metrics(fleet: Fleet) -> Metrics:
    """The metrics of the controller's backlog."""
    metrics = Metrics()
    fleet.backlog = metrics.backlog(fleet.world.clock)
    return metrics


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"evershell_{name}", labels)


async def test_open_cancellations_are_counted_and_the_oldest_has_its_age(
    fleet: Fleet, metrics: Metrics
) -> None:
    await fleet.add_busy()
    async with fleet.running():
        assert value(metrics, "cancellations_open") == 0
        assert value(metrics, "cancellations_oldest_seconds") == 0
    for _ in range(2):
        await fleet.add_busy(cancelled=True)
    fleet.world.clock.now += timedelta(seconds=60)
    async with fleet.running():
        before = value(metrics, "cancellations_oldest_seconds")
        # The age grows without a scan, so it also grows while the database does not answer.
        fleet.world.clock.now += timedelta(seconds=3)
        assert value(metrics, "cancellations_open") == 2
        assert before is not None
        assert value(metrics, "cancellations_oldest_seconds") == before + 3


async def test_a_standby_serves_no_backlog(fleet: Fleet, metrics: Metrics) -> None:
    await fleet.add_busy(cancelled=True)
    names = ("cancellations_open", "cancellations_oldest_seconds")
    assert [value(metrics, name) for name in names] == [None, None]
    async with fleet.running():
        assert None not in [value(metrics, name) for name in names]
    assert [value(metrics, name) for name in names] == [None, None]
    assert value(metrics, "workspaces", status="busy") is None
