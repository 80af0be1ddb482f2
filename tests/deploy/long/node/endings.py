"""Tasks whose pods end."""

from tests.deploy.long.node.stacks import NodeWorkspace


def busy(workspace: NodeWorkspace, *, is_cancelled: bool) -> str:
    """Submits a task that runs until its pod ends. Cancels it if asked to. Returns its id."""
    task_id = workspace.begin("sleep 600")
    if is_cancelled:
        assert workspace.cancel(reason="enough")["outcome"] == "accepted"
    return task_id


def assert_truth(workspace: NodeWorkspace, task_id: str, reason: str, work_stopped: str) -> None:
    """Checks that the workspace failed for this reason, and that its task ended as it must."""
    found = workspace.await_status("failed")
    end = workspace.await_end(task_id)
    assert end["work_stopped"] == work_stopped, end
    assert reason in found["status_reason"]
    assert reason in end["reason"]
    was_cancelled = "cancel_requested_at" in workspace.task(task_id)
    assert end["status"] == ("cancelled" if was_cancelled else "failed")
