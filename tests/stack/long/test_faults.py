"""Cancellations with faulty agents.

Each fault is a row of the table in tests/faults/README.md.
"""

import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from tests.stack.commit_barrier import await_waiting, next_event_held_up
from tests.support import faults
from tests.support.alive import is_alive
from tests.support.lengths import smoke
from tests.support.stack import Gate, Stack, Workspace, running, unique_seconds
from tests.support.waiting import eventually

# Arguments of `sleep` that identify the processes of tools among all processes of the machine.
LEFT_BEHIND, STUBBORN = unique_seconds(), unique_seconds()
# The time limit for an answer. The service waits for an agent for less than 2 s; without that
# limit, the call would take 20 s.
ANSWER_SECONDS = 10.0
POLLERS = 30


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as executor:
        yield executor


@pytest.mark.parametrize("wire", ["rest", "grpc"])
def test_an_agent_that_does_not_answer(
    stack: Stack, workspace: Workspace, gate: Gate, pool: ThreadPoolExecutor, wire: str
) -> None:
    task_id = workspace.begin(gate.command, "echo never")

    def others_are_answered_first() -> bool:
        """Whether calls on this and on another workspace are answered during the cancellation."""
        calling = pool.submit(_unreachable, stack, workspace, wire)
        eventually(lambda: faults.intent_of(workspace, task_id) == "whole")
        assert workspace.task(task_id)["cancel_requested_at"]
        other = f"/v1/workspaces/{stack.ready['demo']['workspace_id']}/task/cancel"
        assert stack.rest().post(other)["outcome"] == "no_active_task"
        overtook = not calling.done()
        message, facts = calling.result()
        assert facts["task_id"] == task_id
        assert "will be delivered" in message
        return overtook

    with stack.frozen_process(stack.agent_pid(workspace.id)):
        # Tries again: the cancellation takes less than 2 s, and on a busy machine it may end before
        # the other calls are answered.
        eventually(others_are_answered_first)
        assert [entry["type"] for entry in workspace.log()][-1] == "task_cancel_requested"
    gate.open()
    end = workspace.await_end(task_id)
    assert (end["status"], end["iterations"]) == ("cancelled", 1)
    faults.assert_next_task_works(workspace)


def test_pollers_of_an_agent_that_does_not_answer(
    stack: Stack, workspace: Workspace, gate: Gate
) -> None:
    """While the agent is frozen, workers send it only a few of the polls, but every cancellation.

    Once the agent runs again, polls are answered.
    """
    task_id = workspace.begin(gate.command, "echo never")
    iteration = f"{workspace.path}/tasks/{task_id}/iteration"

    def poll() -> str:
        return stack.rest().fails("GET", iteration).slug

    with (
        ThreadPoolExecutor(POLLERS) as pollers,
        stack.frozen_process(stack.agent_pid(workspace.id)),
    ):
        for _ in range(5):
            slugs = [each.result() for each in [pollers.submit(poll) for _ in range(POLLERS)]]
            assert slugs == ["agent_unreachable"] * POLLERS
        _unreachable(stack, workspace, "rest")
    assert faults.intent_of(workspace, task_id) == "whole"
    address = str(workspace.agent_address)
    logs = (stack.state_dir / "logs").glob("worker-*.log*")
    lines = [line for path in logs for line in path.read_text().splitlines()]
    events = ("agent_not_read", "agent_unreachable")
    attempts = [line for line in lines if address in line and any(each in line for each in events)]
    # Each worker reads the agent at most once in 3 s, and the cancellation sends one signal.
    assert 1 < len(attempts) < POLLERS
    assert workspace.cancel()["outcome"] == "already_requested"
    eventually(lambda: stack.rest().serves(iteration))
    gate.open()
    assert workspace.await_end(task_id)["status"] == "cancelled"


def _unreachable(stack: Stack, workspace: Workspace, wire: str) -> tuple[str, Any]:
    """Cancels a task of an unreachable agent. Returns the message and the facts of the error."""
    began = time.monotonic()
    if wire == "rest":
        rest = stack.rest().fails("POST", f"{workspace.path}/task/cancel")
        assert time.monotonic() - began < ANSWER_SECONDS
        assert (rest.slug, rest.status, rest.details["intent_recorded"]) == (
            "agent_unreachable",
            503,
            True,
        )
        return rest.message, rest.details
    rpc = stack.grpc().fails("CancelTask", workspace_id=workspace.id)
    assert time.monotonic() - began < ANSWER_SECONDS
    facts = rpc.details["ErrorInfo"]["metadata"]
    assert (rpc.slug, rpc.status, facts["intent_recorded"]) == (
        "agent_unreachable",
        grpc.StatusCode.UNAVAILABLE,
        "true",
    )
    assert "RetryInfo" not in rpc.details
    return rpc.message, facts


@pytest.mark.parametrize("cancelled", smoke([True, False], [True]))
def test_an_agent_that_is_killed_in_a_tool_call(
    stack: Stack, workspace: Workspace, cancelled: bool
) -> None:
    task_id = workspace.submit(
        f"(trap '' TERM HUP; sleep {LEFT_BEHIND} & setsid sleep {LEFT_BEHIND} & wait)", "echo never"
    )
    eventually(lambda: len(running(LEFT_BEHIND)) == 2)
    if cancelled:
        assert workspace.cancel()["outcome"] == "accepted"
    # Blocks the transaction that commits the end: the tools must be dead before the commit.
    with next_event_held_up(workspace):
        stack.kill(stack.agent_pid(workspace.id))
        await_waiting(workspace, "INSERT INTO events")
        assert running(LEFT_BEHIND) == []
    status = "cancelled" if cancelled else "failed"
    end = faults.await_terminal(workspace, task_id)
    assert (end["status"], end["work_stopped"]) == (status, "yes")
    faults.assert_story(workspace, task_id, status=status, intent=cancelled)
    faults.resume(workspace)
    faults.assert_next_task_works(workspace)


def test_a_cancellation_during_a_stop(workspace: Workspace, gate: Gate) -> None:
    task_id = workspace.begin(gate.command, "echo never")
    workspace.rest.post(f"{workspace.path}/stop")
    for named in ({}, {"task_id": task_id}):
        failed = workspace.rest.fails(
            "POST", f"{workspace.path}/task/cancel", json={"reason": "second", **named}
        )
        assert (failed.slug, failed.status) == ("workspace_stopped", 409)
    gate.open()
    workspace.await_status("stopped")
    (*_, end) = faults.assert_story(workspace, task_id, status="cancelled", intent=True)
    assert (end["cancel"]["reason"], end["iterations"]) == ("workspace stopped", 1)


@pytest.mark.parametrize("cancelled", smoke([True, False], [True]))
def test_the_folder_of_a_pod_is_deleted(
    stack: Stack, workspace: Workspace, cancelled: bool
) -> None:
    agent = stack.agent_pid(workspace.id)
    task_id = workspace.submit(f"sleep {LEFT_BEHIND}", "echo never")
    eventually(lambda: running(LEFT_BEHIND))
    if cancelled:
        assert workspace.cancel()["outcome"] == "accepted"
    shutil.rmtree(stack.files(workspace.id).parent)
    status = "cancelled" if cancelled else "failed"
    end = faults.await_terminal(workspace, task_id)
    assert end["reason"]
    assert not is_alive(agent)
    assert running(LEFT_BEHIND) == []
    faults.assert_story(workspace, task_id, status=status, intent=cancelled)
    faults.await_workspace(workspace, "failed")
    assert workspace.get()["status_reason"]
    faults.resume(workspace)
    faults.assert_next_task_works(workspace)


@pytest.mark.soak
def test_a_stop_breaks_off_an_iteration_that_does_not_end_within_the_grace_period(
    workspace: Workspace,
) -> None:
    task_id = workspace.begin(f"sleep {STUBBORN}", "touch never")
    began = time.monotonic()
    assert workspace.rest.post(f"{workspace.path}/stop")["status"] == "stopping"
    # A second stop does not restart the grace period.
    assert workspace.rest.post(f"{workspace.path}/stop")["status"] == "stopping"
    end = workspace.await_end(task_id)
    assert (end["status"], end["forced"], end["iterations"]) == ("cancelled", True, 1)
    assert (end["cancel"]["reason"], end["work_stopped"]) == ("workspace stopped", "yes")
    # The end comes after the grace period, and long before the time limit of a tool.
    assert 9.5 < time.monotonic() - began < 100
    workspace.await_status("stopped")
    assert running(STUBBORN) == []
