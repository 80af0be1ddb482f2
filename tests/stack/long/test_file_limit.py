"""A task is cancelled when the files of its workspace reach WORKSPACE_FILES_MB."""

from tests.support.stack import Stack, Workspace
from tests.support.waiting import eventually


def test_a_task_that_fills_its_workspace_is_cancelled(fragile_stack: Stack) -> None:
    workspace, other = Workspace(fragile_stack), Workspace(fragile_stack)
    quiet = other.begin("sleep 86400")
    task_id = workspace.submit("head -c 70M /dev/zero > large", *["sleep 1"] * 100)
    workspace.await_event("iteration_completed", task_id)
    # A new leader measures the files at once.
    for pid in fragile_stack.pids("fleet"):
        fragile_stack.kill(pid)
    eventually(lambda: workspace.task(task_id).get("completed_at"), 90)
    end = workspace.await_end(task_id)
    assert (end["status"], end["forced"], end["cancel"]["requested_by"]) == (
        "cancelled",
        False,
        "system:limit",
    )
    assert end["cancel"]["reason"] == "workspace_files reached: 64 MiB"
    assert other.task(quiet)["status"] == "running"
    other.cancel(force_after="0s")
    other.await_end(quiet)
