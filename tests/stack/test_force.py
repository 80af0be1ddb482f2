"""A forced cancellation interrupts the iteration in time, with all its processes."""

import os
import signal
import time

from tests.support.stack import Stack, Workspace, running, unique_seconds
from tests.support.waiting import eventually

# Arguments of `sleep` that identify the test's processes among all processes on the machine.
PLAIN, OWN_SESSION, DETACHED = unique_seconds(), unique_seconds(), unique_seconds()


def test_force_interrupts_the_iteration_and_every_process_that_it_started(
    workspace: Workspace,
) -> None:
    line = (
        f"setsid sleep {OWN_SESSION} & (cd /; env -i setsid sleep {DETACHED} &); "
        f"echo so far; sleep {PLAIN}"
    )
    task_id = workspace.submit(line, "touch never")
    eventually(lambda: all(running(each) for each in (PLAIN, OWN_SESSION, DETACHED)))
    began = time.monotonic()
    answer = workspace.cancel(force_after="0.5s", reason="it costs money")
    assert answer["outcome"] == "accepted"
    end = workspace.await_end(task_id)
    assert 0.5 <= time.monotonic() - began < 15
    assert not any(running(each) for each in (PLAIN, OWN_SESSION, DETACHED))
    assert (end["status"], end["forced"], end["iterations"], end["result"]) == (
        "cancelled",
        True,
        1,
        "so far\n",
    )
    cancel = end["cancel"]
    assert cancel["force_requested_by"] == cancel["requested_by"] == answer["requested_by"]
    assert cancel["force_at"] == answer["task"]["cancel_force_at"]
    (iteration,) = [entry for entry in workspace.log() if entry["type"] == "iteration_completed"]
    result = iteration["tool_call"]["result"]
    assert (result["status"], result["output"]) == ("interrupted", "so far\n")
    # The same agent takes the next task, so the epoch has not changed.
    assert workspace.await_end(workspace.submit("echo next"))["status"] == "completed"
    assert workspace.get()["epoch"] == "1"


def test_a_force_deadline_reaches_the_agent_after_its_signal_was_lost(
    stack: Stack, workspace: Workspace
) -> None:
    """A second call sets the deadline while the agent is frozen.

    The agent interrupts the tool call as soon as it is no longer frozen.
    """
    task_id = workspace.submit(f"sleep {PLAIN}")
    workspace.await_phase(task_id, "tool_call")
    workspace.cancel()
    with stack.frozen_process(stack.agent_pid(workspace.id)):
        failed = workspace.rest.fails(
            "POST", f"{workspace.path}/task/cancel", json={"force_after": "0s"}
        )
        assert (failed.slug, failed.details["intent_recorded"]) == ("agent_unreachable", True)
    end = workspace.await_end(task_id)
    assert (end["status"], end["forced"]) == ("cancelled", True)


def test_force_does_not_depend_on_a_live_agent(workspace: Workspace) -> None:
    """The agent is frozen during the cancellation.

    The controller ends the pod 2 s after the deadline, long before the agent's lease of 30 s
    expires.
    """
    task_id = workspace.submit(f"sleep {PLAIN}", "touch never")
    eventually(lambda: running(PLAIN))
    os.kill(workspace.stack.agent_pid(workspace.id), signal.SIGSTOP)
    began = time.monotonic()
    failed = workspace.rest.fails(
        "POST", f"{workspace.path}/task/cancel", json={"force_after": "1s"}
    )
    assert (failed.slug, failed.details["intent_recorded"]) == ("agent_unreachable", True)
    end = workspace.await_end(task_id)
    assert 3 <= time.monotonic() - began < 25
    assert (end["status"], end["forced"], end["work_stopped"]) == ("cancelled", True, "yes")
    assert not running(PLAIN)
    assert end["reason"] == "its agent did not interrupt the task in time"
    assert end["cancel"]["force_requested_by"] == end["cancel"]["requested_by"]
    assert end["iteration_lost"]
    assert workspace.await_status("suspended")["status_reason"] == end["reason"]
