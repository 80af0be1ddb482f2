"""A cancellation races with the end of its task.

A barrier inside the transaction that must commit first decides the order.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest

from tests.stack.commit_barrier import await_waiting, next_event_held_up
from tests.support.stack import Gate, Stack, Workspace


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as executor:
        yield executor


def test_a_cancellation_before_the_completion_wins(
    workspace: Workspace, gate: Gate, pool: ThreadPoolExecutor
) -> None:
    task_id = workspace.submit(gate.command)
    workspace.await_phase(task_id, "tool_call")
    with next_event_held_up(workspace):
        cancelling = pool.submit(workspace.cancel)
        await_waiting(workspace, "record_cancellation")
        gate.open()
        await_waiting(workspace, "FOR UPDATE")
    assert cancelling.result()["outcome"] == "accepted"
    end = workspace.await_end(task_id)
    assert (end["status"], end["result"]) == ("cancelled", "Ran 1 command.")


@pytest.mark.parametrize("named", [True, False])
def test_a_completion_before_the_cancellation_wins(
    workspace: Workspace, gate: Gate, pool: ThreadPoolExecutor, named: bool
) -> None:
    task_id = workspace.submit(gate.command)
    fields = {"task_id": task_id} if named else {}
    workspace.await_phase(task_id, "tool_call")
    with next_event_held_up(workspace):
        gate.open()
        await_waiting(workspace, "INSERT INTO events")
        cancelling = pool.submit(
            lambda: workspace.rest.post(f"{workspace.path}/task/cancel", fields)
        )
        await_waiting(workspace, "record_cancellation")
    answer = cancelling.result()
    end = workspace.await_end(task_id)
    assert end["status"] == "completed"
    assert "cancel" not in end
    assert answer["outcome"] == ("already_finished" if named else "no_active_task")
    if named:
        assert answer["task"]["status"] == "completed"


def test_a_cancellation_before_the_first_iteration_leaves_zero_iterations(
    workspace: Workspace, pool: ThreadPoolExecutor
) -> None:
    """The agent is frozen while task and cancellation are recorded, so it gets both at once.

    The cancellation waits for the lock that the submission holds. So it is recorded directly after
    the submission: 2 s later, the delivery of the task to the frozen agent would have failed.
    """
    with workspace.stack.frozen_process(workspace.stack.agent_pid(workspace.id)):
        with next_event_held_up(workspace):
            submitting = pool.submit(
                workspace.rest.call,
                "POST",
                f"{workspace.path}/tasks",
                json={"description": "touch never"},
            )
            await_waiting(workspace, "INSERT INTO events")
            cancelling = pool.submit(workspace.rest.call, "POST", f"{workspace.path}/task/cancel")
            await_waiting(workspace, "record_cancellation")
        task_id = workspace.await_event("task_submitted")["task_id"]
        workspace.await_event("task_cancel_requested", task_id)
    end = workspace.await_end(task_id)
    assert (end["status"], end["iterations"]) == ("cancelled", 0)
    assert not (workspace.stack.files(workspace.id) / "never").exists()
    # On a slow machine, the calls to the agent time out, and both responses say so. The task still
    # ends in the same way.
    assert submitting.result().status_code in (202, 503)
    assert cancelling.result().json().get("outcome", "accepted") == "accepted"


def test_of_fifty_cancellations_at_once_over_two_workers_one_is_accepted(
    stack: Stack, workspace: Workspace, gate: Gate
) -> None:
    task_id = workspace.begin(gate.command, "echo never")
    callers = 50
    start = Barrier(callers, timeout=60)
    workers = stack.worker_addresses()
    assert len(workers) == 2

    def cancel(number: int) -> dict[str, Any]:
        caller = stack.grpc(address=workers[number % 2])
        start.wait()
        return caller.call("CancelTask", workspace_id=workspace.id, reason=f"caller {number}")

    with ThreadPoolExecutor(callers) as pool:
        answers = list(pool.map(cancel, range(callers)))

    outcomes = [answer["outcome"] for answer in answers]
    assert (outcomes.count("accepted"), outcomes.count("already_requested")) == (1, callers - 1)
    winner = answers[outcomes.index("accepted")]
    assert {answer["reason"] for answer in answers} == {winner["reason"]}
    gate.open()
    assert workspace.await_end(task_id)["cancel"]["reason"] == winner["reason"]
    types = [entry["type"] for entry in workspace.log()]
    assert (types.count("task_cancel_requested"), types.count("task_completed")) == (1, 1)
