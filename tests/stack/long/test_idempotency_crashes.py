"""Kills the worker at each step of a call with an idempotency key.

A repeat of the call gets an answer, and only one task exists. `evershell.pod.crash_points` defines
the crash points.
"""

from pathlib import Path

import pytest

from tests.support import faults
from tests.support.lengths import smoke
from tests.support.stack import Gate, Stack, Workspace
from tests.support.waiting import eventually

WORKERS = 3
POINTS = ["before_delivery", "after_delivery", "before_answer", "after_answer"]


@pytest.mark.parametrize("point", smoke(POINTS, ["before_answer"]))
def test_no_crash_blocks_a_key(fragile_stack: Stack, crash_points: Path, point: str) -> None:
    workspace = Workspace(fragile_stack)
    gate = Gate(workspace)
    (crash_points / point).touch()

    def submit() -> tuple[int, str]:
        response = workspace.rest.call(
            "POST",
            f"{workspace.path}/tasks",
            json={"description": gate.command},
            headers={"idempotency-key": f"{point} {workspace.id}"},
        )
        body = response.json()
        return response.status_code, body.get("task_id") or body["error"]["code"]

    assert submit() == (503, "unavailable")
    assert not (crash_points / point).exists()
    (task_id,) = {entry["task_id"] for entry in workspace.log() if entry["task_id"]}
    # Repeats the call: until Envoy notices that the worker is dead, some calls get a 503.
    answers = eventually(lambda: [answer for answer in [submit()] if answer[0] != 503])
    assert answers == [(202, task_id)]
    gate.open()
    assert faults.await_terminal(workspace, task_id)["status"] == "completed"
    # Waits until the supervisor has restarted the worker.
    eventually(lambda: len(fragile_stack.pids("serve")) == WORKERS)
    answers = eventually(lambda: [answer for answer in [submit()] if answer[0] != 503])
    assert answers == [(202, task_id)]
    submitted = [entry for entry in workspace.log() if entry["type"] == "task_submitted"]
    assert len(submitted) == 1
    eventually(lambda: workspace.rest.call("POST", f"{workspace.path}/stop").is_success)
