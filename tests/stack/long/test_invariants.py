"""Tests the invariants of cancellation on real processes."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

from tests.support.stack import Gate, Stack, Workspace


def test_a_cancellation_during_the_last_iteration_keeps_its_result(
    workspace: Workspace, gate: Gate
) -> None:
    task_id = workspace.submit("echo first", gate.command)
    workspace.await_event("iteration_completed", task_id)
    # Between two iterations, a cancellation would let no other begin.
    workspace.await_phase(task_id, "tool_call")
    assert workspace.cancel()["outcome"] == "accepted"
    gate.open()
    end = workspace.await_end(task_id)
    assert (end["status"], end["iterations"], end["result"]) == ("cancelled", 2, "Ran 2 commands.")
    task = workspace.task(task_id)
    assert (task["status"], task["result"]) == ("cancelled", "Ran 2 commands.")


def test_the_iteration_in_flight_is_finished_and_recorded_with_its_result(
    workspace: Workspace, gate: Gate
) -> None:
    task_id = workspace.begin(gate.command, "touch never")
    workspace.cancel()
    # Between request and end, the task shows who asked and where the agent is.
    task = workspace.task(task_id)
    assert task["cancel_requested_at"] and task["cancel_requested_by"]
    assert (task["status"], task["phase"]) == ("running", "tool_call")
    gate.open()
    end = workspace.await_end(task_id)
    (iteration,) = [entry for entry in workspace.log() if entry["type"] == "iteration_completed"]
    assert iteration["number"] == 1
    assert iteration["tool_call"]["result"] == {
        "status": "exited",
        "exit_code": 0,
        "output": "open\n",
        "truncated_bytes": "0",
    }
    assert end["iterations"] == 1
    # The result that the task had when it was cancelled.
    assert end["result"] == "open\n"
    assert not (workspace.stack.files(workspace.id) / "never").exists()


def test_an_intent_does_not_leak_to_the_next_task(workspace: Workspace, gate: Gate) -> None:
    first = workspace.begin(gate.command, "echo never")
    workspace.cancel(task_id=first)
    gate.open()
    workspace.await_end(first)
    assert workspace.cancel()["outcome"] == "no_active_task"
    second = workspace.submit(gate.command, "echo also")
    # A late retry of the first cancellation, which names its task, does not change the second task.
    late = workspace.cancel(task_id=first)
    assert (late["outcome"], late["task_id"], late["task"]["status"]) == (
        "already_finished",
        first,
        "cancelled",
    )
    gate.open()
    end = workspace.await_end(second)
    assert (end["status"], end["iterations"]) == ("completed", 2)
    assert "cancel" not in end
    assert "cancel_requested_at" not in workspace.task(second)


def test_a_task_that_fails_by_itself_says_why(workspace: Workspace) -> None:
    task_id = workspace.submit("echo fine", "fail: the repository is empty")
    end = workspace.await_end(task_id)
    assert (end["status"], end["reason"], end["iterations"]) == (
        "failed",
        "the repository is empty",
        1,
    )
    assert workspace.cancel(task_id=task_id)["outcome"] == "already_finished"


def test_fifty_concurrent_cancellations_over_two_workers_record_one(
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
