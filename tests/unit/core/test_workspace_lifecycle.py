"""The life cycle of a workspace: its agent registers, renews its lease, stops, or is lost."""

from dataclasses import replace
from datetime import timedelta

import pytest

from evershell.core import task_lifecycle, workspace_lifecycle
from evershell.core.bounds import FORCE_MARGIN
from evershell.core.change import Change, Locked, unchanged
from evershell.core.errors import Failure
from evershell.core.task import Phase, TaskEnded, TaskStatus
from evershell.core.workspace import WorkspaceStatus
from tests.support.world import NOW, intent, locked_busy, workspace
from tests.unit.core.committing import types

LATER = NOW + timedelta(minutes=1)
PROVISIONING, IDLE, BUSY = WorkspaceStatus.PROVISIONING, WorkspaceStatus.IDLE, WorkspaceStatus.BUSY
SUSPENDED = WorkspaceStatus.SUSPENDED
STOPPING, STOPPED, FAILED = (
    WorkspaceStatus.STOPPING,
    WorkspaceStatus.STOPPED,
    WorkspaceStatus.FAILED,
)
ENDED = (STOPPED, FAILED)


def stopping(locked: Locked) -> Locked:
    """Returns the locked state after StopWorkspace."""
    change = workspace_lifecycle.request_stop(locked, intent(reason="workspace stopped"))
    return Locked(change.workspace, change.task)


def without_agent(change: Change) -> bool:
    workspace = change.workspace
    return (
        workspace.agent_address,
        workspace.lease_expires_at,
        workspace.run_id,
        workspace.current_task_id,
    ) == (None,) * 4


@pytest.mark.parametrize(
    ("epoch", "event"), [(1, "workspace_provisioned"), (2, "workspace_resumed")]
)
def test_an_agent_that_registers_makes_its_workspace_idle(epoch: int, event: str) -> None:
    locked = Locked(workspace(PROVISIONING, epoch=epoch, status_reason="restarting"), None)
    change = workspace_lifecycle.register(locked, epoch, "127.0.0.1:1", 30, LATER)
    assert (change.workspace.status, change.workspace.status_reason) == (IDLE, "")
    assert change.workspace.agent_address == "127.0.0.1:1"
    assert change.lease_seconds == 30
    assert (types(change), change.events[0].payload) == ([event], {"epoch": epoch})


@pytest.mark.parametrize("status", [IDLE, BUSY, STOPPING])
def test_an_agent_that_registers_again_only_renews_its_lease(
    status: WorkspaceStatus,
) -> None:
    locked = locked_busy()
    locked = replace(locked, workspace=replace(locked.workspace, status=status))
    change = workspace_lifecycle.register(locked, 1, "127.0.0.1:2", 30, LATER)
    reachable = replace(locked.workspace, agent_address="127.0.0.1:2")
    assert change == Change(reachable, locked.task, lease_seconds=30)


@pytest.mark.parametrize("epoch", [1, 3])
def test_an_agent_of_another_epoch_changes_nothing(epoch: int) -> None:
    locked = locked_busy(epoch=2)
    assert locked.task is not None
    for change in (
        workspace_lifecycle.register(locked, epoch, "127.0.0.1:1", 30, LATER),
        workspace_lifecycle.heartbeat(locked, epoch, locked.task.id, Phase.TOOL_CALL, 30, LATER),
        task_lifecycle.commit(
            locked, epoch, locked.task.id, [TaskEnded(status=TaskStatus.COMPLETED)], LATER
        ),
        workspace_lifecycle.lose_agent(locked, epoch, "gone", LATER, work_stopped=True),
        workspace_lifecycle.finish_stop(stopping(locked), epoch, LATER, work_stopped=True),
        workspace_lifecycle.place(locked, epoch, "run_2", LATER, work_stopped=True),
    ):
        assert change.events == ()
        assert change.workspace in (locked.workspace, stopping(locked).workspace)


@pytest.mark.parametrize("status", ENDED)
def test_the_agent_of_an_ended_workspace_changes_nothing(status: WorkspaceStatus) -> None:
    locked = Locked(workspace(status), None)
    for change in (
        workspace_lifecycle.register(locked, 1, "127.0.0.1:1", 30, LATER),
        workspace_lifecycle.heartbeat(locked, 1, "", Phase.NONE, 30, LATER),
        workspace_lifecycle.lose_agent(locked, 1, "gone", LATER, work_stopped=True),
        workspace_lifecycle.finish_stop(locked, 1, LATER, work_stopped=True),
        workspace_lifecycle.place(locked, 1, "run_2", LATER, work_stopped=True),
    ):
        assert change == unchanged(locked)
    assert locked.workspace.is_fenced(1)


def test_a_heartbeat_renews_the_lease_and_records_the_phase() -> None:
    locked = locked_busy()
    assert locked.task is not None
    change = workspace_lifecycle.heartbeat(locked, 1, locked.task.id, Phase.TOOL_CALL, 30, LATER)
    assert (change.workspace, change.lease_seconds) == (locked.workspace, 30)
    assert (change.task, change.events) == (replace(locked.task, phase=Phase.TOOL_CALL), ())


def test_a_heartbeat_records_no_phase_for_a_task_that_is_not_running() -> None:
    for locked, task_id in (
        (locked_busy(), "task_earlier"),
        (locked_busy(TaskStatus.SUBMITTED), None),
        (Locked(workspace(), None), ""),
    ):
        named = task_id if task_id is not None else locked.workspace.current_task_id or ""
        assert (
            workspace_lifecycle.heartbeat(locked, 1, named, Phase.MODEL_CALL, 30, LATER).task
            == locked.task
        )


def test_an_agent_that_has_not_started_its_task_does_not_name_it() -> None:
    """Otherwise, an agent could work on a task without starting it, and no limit would apply."""
    locked = locked_busy(TaskStatus.DELIVERED)
    assert locked.task is not None
    reported = workspace_lifecycle.heartbeat(locked, 1, locked.task.id, Phase.NONE, 30, LATER)
    assert reported.workspace.task_unnamed_since == LATER


def test_a_breach_fences_the_agent_and_is_the_reason_of_its_end() -> None:
    locked = locked_busy()
    breached = workspace_lifecycle.record_breach(locked, 1, "its agent lied").workspace
    assert breached.is_fenced(1)
    again = Locked(breached, locked.task)
    assert workspace_lifecycle.record_breach(again, 1, "another").workspace == breached
    lost = workspace_lifecycle.lose_agent(again, 1, "its agent ended", LATER, work_stopped=True)
    assert lost.task is not None
    assert (lost.task.status, lost.task.reason) == (TaskStatus.FAILED, "its agent lied")
    assert (lost.workspace.status, lost.workspace.status_reason) == (FAILED, "its agent lied")
    assert lost.workspace.agent_breach is None


@pytest.mark.parametrize("status", [PROVISIONING, IDLE])
def test_a_workspace_without_a_task_begins_to_stop(status: WorkspaceStatus) -> None:
    locked = Locked(workspace(status), None)
    change = workspace_lifecycle.request_stop(locked, intent(reason="workspace stopped"))
    assert (change.workspace.status, change.workspace.status_reason) == (
        STOPPING,
        "workspace stopped",
    )
    assert (change.task, change.events) == (None, ())


def test_a_stop_cancels_the_task_and_forces_it_after_10_seconds() -> None:
    locked = locked_busy()
    change = workspace_lifecycle.request_stop(locked, intent(reason="workspace stopped"))
    assert (change.workspace.status, types(change)) == (STOPPING, ["task_cancel_requested"])
    assert change.task is not None and change.task.cancel is not None
    assert change.task.cancel.reason == "workspace stopped"
    assert change.task.cancel.force_at == intent().requested_at + timedelta(seconds=10)
    assert change.workspace.current_task_id == change.task.id


def test_a_stop_adds_its_force_deadline_to_an_earlier_intent() -> None:
    first = intent(reason="first")
    change = workspace_lifecycle.request_stop(
        locked_busy(cancel=first), intent(reason="workspace stopped")
    )
    assert change.task is not None
    assert change.task.cancel == replace(
        first, force_at=intent().requested_at + timedelta(seconds=10), force_requested_by="user_9"
    )
    assert change.events == ()


@pytest.mark.parametrize("status", [STOPPING, STOPPED])
def test_a_second_stop_changes_nothing(status: WorkspaceStatus) -> None:
    locked = Locked(workspace(status), None)
    assert workspace_lifecycle.request_stop(locked, intent()) == unchanged(locked)


def test_a_failed_workspace_cannot_be_stopped() -> None:
    with pytest.raises(Failure) as raised:
        workspace_lifecycle.request_stop(
            Locked(workspace(FAILED, status_reason="it burnt"), None), intent()
        )
    assert raised.value.slug == "workspace_failed" and "it burnt" in raised.value.message


def test_a_task_that_ends_while_stopping_leaves_the_workspace_stopping() -> None:
    locked = stopping(locked_busy())
    assert locked.task is not None
    change = task_lifecycle.commit(
        locked, 1, locked.task.id, [TaskEnded(status=TaskStatus.COMPLETED)], LATER
    )
    assert (change.workspace.status, change.workspace.current_task_id) == (STOPPING, None)
    assert change.task is not None and change.task.status is TaskStatus.CANCELLED


@pytest.mark.parametrize(("work_stopped", "reported"), [(True, "yes"), (False, "unknown")])
def test_a_finished_stop_ends_an_open_task_by_force(work_stopped: bool, reported: str) -> None:
    change = workspace_lifecycle.finish_stop(
        stopping(locked_busy()), 1, LATER, work_stopped=work_stopped
    )
    assert (change.workspace.status, types(change)) == (
        STOPPED,
        ["task_completed", "workspace_stopped"],
    )
    assert change.task is not None and (change.task.status, change.task.forced) == (
        TaskStatus.CANCELLED,
        True,
    )
    assert change.events[0].payload["work_stopped"] == reported
    assert without_agent(change)
    again = workspace_lifecycle.finish_stop(
        Locked(change.workspace, None), 1, LATER, work_stopped=True
    )
    assert again.events == ()


@pytest.mark.parametrize("status", [PROVISIONING, IDLE, BUSY])
def test_finish_stop_changes_only_a_stopping_workspace(status: WorkspaceStatus) -> None:
    locked = Locked(workspace(status), None)
    assert workspace_lifecycle.finish_stop(locked, 1, LATER, work_stopped=True) == unchanged(locked)


def deleting(locked: Locked) -> Locked:
    """Returns the locked state after DeleteWorkspace."""
    change = workspace_lifecycle.request_delete(locked, intent(reason="workspace deleted"))
    return Locked(change.workspace, change.task)


@pytest.mark.parametrize("status", sorted(set(WorkspaceStatus) - {BUSY, WorkspaceStatus.DELETING}))
def test_a_workspace_can_be_deleted_in_every_state(status: WorkspaceStatus) -> None:
    locked = Locked(workspace(status, status_reason="why"), None)
    begun = deleting(locked)
    assert (begun.workspace.status, begun.workspace.status_reason) == (
        WorkspaceStatus.DELETING,
        "workspace deleted",
    )
    assert workspace_lifecycle.request_delete(begun, intent()) == unchanged(begun)
    for refuse in (
        lambda: workspace_lifecycle.request_stop(begun, intent()),
        lambda: workspace_lifecycle.resume(begun, LATER),
        begun.workspace.require_up,
    ):
        with pytest.raises(Failure) as raised:
            refuse()
        assert raised.value.slug == "workspace_deleting"


def test_a_deletion_cancels_the_task_as_a_stop_does() -> None:
    locked = locked_busy()
    change = workspace_lifecycle.request_delete(locked, intent(reason="workspace deleted"))
    stopped = workspace_lifecycle.request_stop(locked, intent(reason="workspace deleted"))
    assert (change.task, change.events) == (stopped.task, stopped.events)
    assert replace(change.workspace, status=STOPPING) == stopped.workspace


def test_the_agent_of_a_deleted_workspace_is_fenced_once_its_pod_has_ended() -> None:
    begun = deleting(locked_busy())
    assert not begun.workspace.is_fenced(1) and not begun.workspace.awaits_removal
    change = workspace_lifecycle.finish_stop(begun, 1, LATER, work_stopped=True)
    assert types(change) == ["task_completed", "workspace_stopped"]
    assert change.task is not None and change.task.status is TaskStatus.CANCELLED
    assert without_agent(change)
    assert change.workspace.status is WorkspaceStatus.DELETING
    assert change.workspace.is_fenced(1) and change.workspace.awaits_removal
    for lose in (
        workspace_lifecycle.lose_agent(begun, 1, "it died", LATER, work_stopped=True),
        workspace_lifecycle.place(begun, 1, "run_2", LATER, work_stopped=True),
    ):
        assert lose.workspace == change.workspace
    again = Locked(change.workspace, None)
    for late in (
        workspace_lifecycle.finish_stop(again, 1, LATER, work_stopped=True),
        workspace_lifecycle.place(again, 1, "run_2", LATER, work_stopped=True),
        workspace_lifecycle.register(again, 1, "127.0.0.1:1", 30, LATER),
        workspace_lifecycle.heartbeat(again, 1, "", Phase.NONE, 30, LATER),
    ):
        assert late == unchanged(again)


def test_the_task_of_a_deleted_workspace_that_is_not_woken_yet_ends_at_once() -> None:
    locked = locked_busy(TaskStatus.SUBMITTED, run_id=None)
    locked = replace(locked, workspace=replace(locked.workspace, status=PROVISIONING))
    change = workspace_lifecycle.request_delete(locked, intent(reason="workspace deleted"))
    assert types(change) == ["task_cancel_requested", "task_completed"]
    assert change.task is not None
    assert (change.task.status, change.task.iterations, change.task.forced) == (
        TaskStatus.CANCELLED,
        0,
        False,
    )
    assert change.workspace.awaits_removal and change.workspace.current_task_id is None


def test_a_deleted_workspace_that_was_never_placed_has_no_pod() -> None:
    begun = deleting(Locked(workspace(PROVISIONING), None))
    assert begun.workspace.awaits_removal and begun.workspace.is_fenced(1)


@pytest.mark.parametrize("status", ENDED)
def test_an_ended_workspace_resumes_in_a_new_epoch(status: WorkspaceStatus) -> None:
    locked = Locked(workspace(status, status_reason="why", epoch=4), None)
    change = workspace_lifecycle.resume(locked, LATER)
    assert (change.workspace.status, change.workspace.epoch, change.workspace.status_reason) == (
        PROVISIONING,
        5,
        "",
    )
    assert without_agent(change) and change.events == ()
    assert change.workspace.is_fenced(4) and not change.workspace.is_fenced(5)


@pytest.mark.parametrize("status", [PROVISIONING, IDLE, BUSY])
def test_resume_does_not_change_a_workspace_that_is_up(status: WorkspaceStatus) -> None:
    locked = Locked(workspace(status), None)
    assert workspace_lifecycle.resume(locked, LATER) == unchanged(locked)


def test_a_stopping_workspace_cannot_resume_yet() -> None:
    with pytest.raises(Failure) as raised:
        workspace_lifecycle.resume(Locked(workspace(STOPPING), None), LATER)
    assert (raised.value.slug, raised.value.details["status"]) == ("invalid_state", "stopping")


@pytest.mark.parametrize("cancelled", [False, True])
@pytest.mark.parametrize(("work_stopped", "reported"), [(True, "yes"), (False, "unknown")])
def test_a_lost_agent_ends_its_task_and_fails_its_workspace(
    cancelled: bool, work_stopped: bool, reported: str
) -> None:
    locked = locked_busy(cancel=intent() if cancelled else None)
    change = workspace_lifecycle.lose_agent(locked, 1, "it died", LATER, work_stopped=work_stopped)
    assert (change.workspace.status, change.workspace.status_reason) == (FAILED, "it died")
    assert change.task is not None
    assert change.task.status is (TaskStatus.CANCELLED if cancelled else TaskStatus.FAILED)
    assert (change.task.reason, change.task.forced) == ("it died", False)
    assert types(change) == ["task_completed", "workspace_failed"]
    assert change.events[0].payload["work_stopped"] == reported
    assert without_agent(change)
    assert (
        workspace_lifecycle.lose_agent(
            Locked(change.workspace, None), 1, "again", LATER, work_stopped=True
        ).events
        == ()
    )


@pytest.mark.parametrize(("work_stopped", "run_id"), [(True, None), (False, "run_1")])
def test_a_pod_that_was_ended_by_force_leaves_a_suspended_workspace(
    work_stopped: bool, run_id: str | None
) -> None:
    locked = locked_busy(cancel=intent(force_at=NOW, force_requested_by="user_9"))
    change = workspace_lifecycle.lose_agent(locked, 1, "too late", LATER, work_stopped=work_stopped)
    at = change.workspace
    assert (at.status, at.status_reason, at.run_id) == (SUSPENDED, "too late", run_id)
    assert change.task is not None and change.task.forced
    assert types(change) == ["task_completed"]
    assert without_agent(replace(change, workspace=replace(at, run_id=None)))
    # If the pod has not ended, the controller must end it.
    assert at.awaits_controller is not work_stopped


def test_a_pod_that_was_ended_by_force_suspends_although_its_task_has_just_ended() -> None:
    locked = locked_busy(cancel=intent(force_at=NOW, force_requested_by="user_9"))
    idle = Locked(replace(locked.workspace, status=IDLE, current_task_id=None), None)
    change = workspace_lifecycle.lose_agent(
        idle, 1, "too late", LATER, work_stopped=True, overdue=locked.task
    )
    assert (change.workspace.status, types(change)) == (SUSPENDED, [])


def test_an_agent_that_is_lost_before_its_force_is_over_fails_its_workspace() -> None:
    locked = locked_busy(cancel=intent(force_at=NOW, force_requested_by="user_9"))
    ended_at = NOW + FORCE_MARGIN
    change = workspace_lifecycle.lose_agent(locked, 1, "it died", ended_at, work_stopped=True)
    assert change.workspace.status is FAILED
    assert change.task is not None and change.task.forced


def test_an_agent_that_broke_a_rule_fails_its_workspace_even_by_force() -> None:
    locked = locked_busy(cancel=intent(force_at=NOW, force_requested_by="user_9"))
    broken = replace(locked, workspace=replace(locked.workspace, agent_breach="its agent lied"))
    change = workspace_lifecycle.lose_agent(broken, 1, "too late", LATER, work_stopped=True)
    assert (change.workspace.status, change.workspace.status_reason) == (FAILED, "its agent lied")


def test_a_stopping_workspace_whose_agent_is_lost_is_stopped() -> None:
    change = workspace_lifecycle.lose_agent(
        stopping(locked_busy()), 1, "it died", LATER, work_stopped=True
    )
    assert (change.workspace.status, types(change)) == (
        STOPPED,
        ["task_completed", "workspace_stopped"],
    )
    assert change.task is not None and change.task.status is TaskStatus.CANCELLED


def test_a_run_takes_a_workspace_without_a_run() -> None:
    locked = Locked(workspace(PROVISIONING), None)
    change = workspace_lifecycle.place(locked, 1, "run_1", LATER, work_stopped=True)
    assert change == Change(replace(locked.workspace, run_id="run_1", updated_at=LATER), None)
    placed = Locked(change.workspace, None)
    assert workspace_lifecycle.place(placed, 1, "run_1", LATER, work_stopped=True) == unchanged(
        placed
    )


@pytest.mark.parametrize("cancelled", [False, True])
def test_a_new_run_ends_the_task_and_starts_a_new_epoch(cancelled: bool) -> None:
    locked = locked_busy(cancel=intent() if cancelled else None)
    change = workspace_lifecycle.place(locked, 1, "run_2", LATER, work_stopped=True)
    assert change.task is not None
    assert change.task.status is (TaskStatus.CANCELLED if cancelled else TaskStatus.FAILED)
    assert types(change) == ["task_completed"]
    placed = change.workspace
    assert (placed.status, placed.epoch, placed.run_id, placed.current_task_id) == (
        PROVISIONING,
        2,
        "run_2",
        None,
    )
    assert (placed.agent_address, placed.lease_expires_at) == (None, None)
    assert placed.is_fenced(1)


def test_a_stopping_workspace_of_an_earlier_run_is_stopped() -> None:
    change = workspace_lifecycle.place(
        stopping(locked_busy()), 1, "run_2", LATER, work_stopped=True
    )
    assert (change.workspace.status, types(change)) == (
        STOPPED,
        ["task_completed", "workspace_stopped"],
    )
