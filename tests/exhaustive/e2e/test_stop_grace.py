"""Stopping a busy workspace takes the grace period of 10 s."""

import time

from tests.support.stack import Workspace, running, unique_seconds
from tests.support.waiting import eventually

# It distinguishes this process from every other sleep on the machine.
STUBBORN = unique_seconds()


def test_stopping_breaks_off_an_iteration_that_does_not_end_within_the_grace_period(
    workspace: Workspace,
) -> None:
    task_id = workspace.submit(f"sleep {STUBBORN}", "touch never")
    workspace.await_phase(task_id, "tool_call")
    eventually(lambda: running(STUBBORN))
    began = time.monotonic()
    assert workspace.rest.post(f"{workspace.path}/stop")["status"] == "stopping"
    # A second request does not restart the grace period.
    assert workspace.rest.post(f"{workspace.path}/stop")["status"] == "stopping"
    end = workspace.await_end(task_id)
    assert (end["status"], end["forced"], end["iterations"]) == ("cancelled", True, 1)
    assert (end["cancel"]["reason"], end["work_stopped"]) == ("workspace stopped", "yes")
    assert 9.5 < time.monotonic() - began < 30
    assert workspace.await_status("stopped")["status_reason"] == "workspace stopped"
    assert running(STUBBORN) == []
    (iteration,) = [entry for entry in workspace.log() if entry["type"] == "iteration_completed"]
    assert iteration["tool_call"]["result"]["status"] == "interrupted"
    assert [entry["type"] for entry in workspace.log()][-2:] == [
        "task_completed",
        "workspace_stopped",
    ]
