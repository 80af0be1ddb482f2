"""A worker crashes in the middle of a CancelTask.

tests/stack/long/test_crash_points.py covers all crash points.
"""

from tests.support import faults
from tests.support.stack import Gate, Stack, Workspace
from tests.support.waiting import eventually


def test_an_intent_survives_the_crash_of_the_worker_that_recorded_it(
    stack: Stack, workspace: Workspace, gate: Gate
) -> None:
    task_id = workspace.submit(gate.command, "echo never")
    workspace.await_phase(task_id, "tool_call")
    agent, workers = stack.agent_pid(workspace.id), stack.pids("serve")
    point = stack.state_dir.parent / "points" / "after_intent"
    point.touch()

    assert faults.cancel(workspace, "rest") == "unavailable"

    assert not point.exists()
    assert faults.intent_of(workspace, task_id) == "whole"
    gate.open()
    assert faults.await_terminal(workspace, task_id)["iterations"] == 1
    faults.assert_story(workspace, task_id, status="cancelled", intent=True)
    # The supervisor restarts the worker. The agent has kept running.
    eventually(lambda: len(set(stack.pids("serve")) - set(workers)) == 1)
    for address in stack.worker_addresses():
        eventually(lambda: faults.health_of(address) == "SERVING")
    faults.assert_next_task_works(workspace)
    assert stack.agent_pid(workspace.id) == agent
