"""The submission of a task, and its delivery to the agent."""

from dataclasses import replace

import pytest

from evershell.core import task_lifecycle
from evershell.core.change import Change, Locked, unchanged
from evershell.core.errors import Failure
from evershell.core.task import TaskStatus
from evershell.core.workspace import WorkspaceStatus
from tests.support.world import USER, intent, locked_busy, task, workspace
from tests.unit.core.committing import LATER, types


def test_a_task_makes_an_idle_workspace_busy() -> None:
    idle = workspace()
    submitted = task(idle.id, description="ls", max_iterations=7)
    change = task_lifecycle.submit(Locked(idle, None), submitted, USER)
    assert change.workspace == replace(
        idle, status=WorkspaceStatus.BUSY, current_task_id=submitted.id
    )
    assert (change.task, types(change)) == (submitted, ["task_submitted"])
    assert change.events[0].payload == {
        "description": "ls",
        "max_iterations": 7,
        "submitted_by": USER,
    }
    assert change.events[0].task_id == submitted.id


def test_the_refusal_of_a_second_task_names_the_first() -> None:
    locked = locked_busy()
    with pytest.raises(Failure) as raised:
        task_lifecycle.submit(locked, task(locked.workspace.id), USER)
    assert locked.task is not None
    assert (raised.value.slug, raised.value.details["task_id"]) == (
        "workspace_busy",
        locked.task.id,
    )


@pytest.mark.parametrize(
    ("status", "slug"),
    [
        (WorkspaceStatus.PROVISIONING, "workspace_provisioning"),
        (WorkspaceStatus.STOPPING, "workspace_stopped"),
        (WorkspaceStatus.STOPPED, "workspace_stopped"),
        (WorkspaceStatus.FAILED, "workspace_failed"),
    ],
)
def test_a_workspace_that_is_not_up_takes_no_task(status: WorkspaceStatus, slug: str) -> None:
    down = workspace(status)
    with pytest.raises(Failure) as raised:
        task_lifecycle.submit(Locked(down, None), task(down.id), USER)
    assert raised.value.slug == slug


def test_an_acknowledged_task_is_delivered() -> None:
    locked = locked_busy(TaskStatus.SUBMITTED)
    assert locked.task is not None
    change = task_lifecycle.deliver(locked, locked.task.id)
    assert change == Change(locked.workspace, replace(locked.task, status=TaskStatus.DELIVERED))


@pytest.mark.parametrize("status", [TaskStatus.DELIVERED, TaskStatus.RUNNING])
def test_a_late_acknowledgement_changes_nothing(status: TaskStatus) -> None:
    locked = locked_busy(status)
    assert locked.task is not None
    assert task_lifecycle.deliver(locked, locked.task.id) == unchanged(locked)
    assert task_lifecycle.fail_delivery(locked, locked.task.id, "gone", LATER) == unchanged(locked)


def test_the_acknowledgement_of_an_earlier_task_changes_nothing() -> None:
    for locked in (locked_busy(TaskStatus.SUBMITTED), Locked(workspace(), None)):
        assert task_lifecycle.deliver(locked, "task_earlier") == unchanged(locked)
        assert task_lifecycle.fail_delivery(locked, "task_earlier", "gone", LATER) == unchanged(
            locked
        )


def test_a_task_that_cannot_be_delivered_ends() -> None:
    locked = locked_busy(TaskStatus.SUBMITTED)
    assert locked.task is not None
    change = task_lifecycle.fail_delivery(locked, locked.task.id, "gone", LATER)
    assert change.task is not None
    assert (change.task.status, change.task.reason, change.task.completed_at) == (
        TaskStatus.DELIVERY_FAILED,
        "gone",
        LATER,
    )
    assert (change.workspace.status, change.workspace.current_task_id) == (
        WorkspaceStatus.IDLE,
        None,
    )
    assert types(change) == ["task_completed"]


def test_a_cancelled_task_that_cannot_be_delivered_ends_cancelled() -> None:
    locked = locked_busy(TaskStatus.SUBMITTED, cancel=intent())
    assert locked.task is not None
    change = task_lifecycle.fail_delivery(locked, locked.task.id, "gone", LATER)
    assert change.task is not None and change.task.status is TaskStatus.CANCELLED
