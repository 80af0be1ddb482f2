"""Cancellations that wait for the end of the task, through Envoy, with two workers."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.support import faults
from tests.support.stack import Gate, Stack, Workspace
from tests.support.waiting import eventually


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as executor:
        yield executor


def test_a_wait_answers_200_when_the_task_ends(
    workspace: Workspace, gate: Gate, pool: ThreadPoolExecutor
) -> None:
    task_id = workspace.submit(gate.command, "echo never")
    workspace.await_phase(task_id, "tool_call")
    calling = pool.submit(workspace.cancel, 200, wait="30s")
    workspace.await_event("task_cancel_requested", task_id)
    gate.open()
    answer = calling.result()
    assert (answer["outcome"], answer["task"]["status"]) == ("accepted", "cancelled")
    assert answer["task"]["completed_at"]
    # The task has already ended, so a second call returns at once.
    again = workspace.cancel(200, wait="30s", task_id=task_id)
    assert again["outcome"] == "already_finished"


def test_a_wait_answers_202_with_the_running_task_when_its_time_is_over(
    workspace: Workspace, gate: Gate
) -> None:
    task_id = workspace.submit(gate.command, "echo never")
    workspace.await_phase(task_id, "tool_call")
    answer = workspace.cancel(202, wait="0.1s")
    assert (answer["outcome"], answer["task"]["status"]) == ("accepted", "running")
    gate.open()
    workspace.await_end(task_id)
    assert workspace.cancel(202, wait="30s")["outcome"] == "no_active_task"


def test_a_draining_worker_answers_its_waits_and_ends_its_streams(
    stack: Stack, workspace: Workspace, gate: Gate, pool: ThreadPoolExecutor
) -> None:
    task_id = workspace.submit(gate.command, "echo never")
    workspace.await_phase(task_id, "tool_call")
    seen: list[dict[str, Any]] = []
    watching = pool.submit(lambda: seen.extend(workspace.rest.events(workspace.id)))
    eventually(lambda: seen)
    calling = pool.submit(workspace.cancel, 202, wait="30s")
    workspace.await_event("task_cancel_requested", task_id)
    before = stack.pids("serve")
    for pid in before:
        stack.terminate(pid)
    answer = calling.result(timeout=25)
    assert (answer["outcome"], answer["task"]["status"]) == ("accepted", "running")
    watching.result(timeout=30)
    last = seen[-1]
    assert last["error"]["code"] == "unavailable"
    assert f"after={last_seq(workspace)}" in last["error"]["message"]
    # The supervisor starts new workers.
    eventually(lambda: len(set(stack.pids("serve")) - set(before)) == len(before))
    faults.await_workers(stack)
    gate.open()
    assert workspace.await_end(task_id)["status"] == "cancelled"


def last_seq(workspace: Workspace) -> int:
    seq: int = workspace.log()[-1]["seq"]
    return seq
