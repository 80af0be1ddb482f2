"""Tasks whose pods end."""

from tests.deploy.long.node.stacks import NodeWorkspace


def busy(workspace: NodeWorkspace, *, is_cancelled: bool) -> str:
    """Submits a task that runs until its pod ends, and cancels it. Returns its id."""
    task_id = workspace.begin("sleep 600")
    if is_cancelled:
        assert workspace.cancel(reason="enough")["outcome"] == "accepted"
    return task_id


def assert_truth(workspace: NodeWorkspace, task_id: str, reason: str, work_stopped: str) -> None:
    """The workspace failed for this reason, and its task ended."""
    found = workspace.await_status("failed")
    end = workspace.await_end(task_id)
    assert end["work_stopped"] == work_stopped, end
    assert reason in found["status_reason"]
    assert reason in end["reason"]
    was_cancelled = "cancel_requested_at" in workspace.task(task_id)
    assert end["status"] == ("cancelled" if was_cancelled else "failed")
