"""The client, in its synchronous and asynchronous form, on a real stack through Envoy."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from evershell.client import (
    AsyncClient,
    CancelOutcome,
    Client,
    DeadlineExceededError,
    IterationCompleted,
    TaskCompleted,
    TaskNotEndedError,
    TaskStatus,
    ToolStatus,
    WorkspaceBusyError,
)
from tests.support import faults
from tests.support.stack import Gate, Stack, Workspace
from tests.support.waiting import eventually


@pytest.fixture
def client(stack: Stack) -> Iterator[Client]:
    with Client(stack.ready["grpc_addr"], stack.tokens["full_access"]) as made:
        yield made


@pytest.fixture
async def async_client(stack: Stack) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(stack.ready["grpc_addr"], stack.tokens["full_access"]) as made:
        yield made


def test_a_task_is_followed_to_its_end(client: Client, workspace: Workspace) -> None:
    submitted = client.submit_task(workspace.id, "echo one\necho two", metadata={"a": "b"})
    with closing(client.watch(workspace.id, timeout=30)) as watched:
        events = []
        for event in watched:
            events.append(event)
            if isinstance(event.payload, TaskCompleted):
                break
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert events[-1].task_id == submitted.task_id
    iterations = [
        event.payload for event in events if isinstance(event.payload, IterationCompleted)
    ]
    assert [each.number for each in iterations] == [1, 2]
    tool = iterations[0].tool_call
    assert tool is not None and (tool.result.status, tool.result.output) == (
        ToolStatus.EXITED,
        "one\n",
    )
    own = list(client.watch(workspace.id, task_id=submitted.task_id))
    assert own == [event for event in events if event.task_id == submitted.task_id]
    task = client.get_task(workspace.id, submitted.task_id)
    assert (task.status, task.iterations, task.metadata) == (TaskStatus.COMPLETED, 2, {"a": "b"})
    assert task.created_at is not None and task.completed_at is not None
    assert task.created_at < task.completed_at
    assert client.wait_for_task(workspace.id, submitted.task_id) == task


def test_a_cancellation_is_waited_for(client: Client, workspace: Workspace, gate: Gate) -> None:
    task_id = client.submit_task(workspace.id, f"{gate.command}\necho never").task_id
    workspace.await_phase(task_id, "tool_call")
    with pytest.raises(WorkspaceBusyError) as busy:
        client.submit_task(workspace.id, "true")
    assert busy.value.task_id == task_id
    with pytest.raises(TaskNotEndedError) as early:
        client.cancel_and_wait(workspace.id, reason="it has gone wrong", timeout=0.2)
    assert early.value.result is not None
    assert early.value.result.outcome is CancelOutcome.ACCEPTED
    with ThreadPoolExecutor(1) as executor:
        waiting = executor.submit(client.cancel_and_wait, workspace.id, task_id, timeout=25)
        eventually(
            lambda: len(list(client.list_audit_entries(task_id=task_id, rpc="CancelTask"))) == 2
        )
        gate.open()
        ended = waiting.result()
    assert (ended.outcome, ended.reason) == (CancelOutcome.ALREADY_REQUESTED, "it has gone wrong")
    assert ended.task is not None and ended.task.status is TaskStatus.CANCELLED
    assert ended.task.iterations == 1
    again = client.cancel(workspace.id, task_id)
    assert (again.outcome, again.is_over) == (CancelOutcome.ALREADY_FINISHED, True)
    assert client.cancel(workspace.id).outcome is CancelOutcome.NO_ACTIVE_TASK
    entries = list(client.list_audit_entries(workspace_id=workspace.id, rpc="CancelTask"))
    assert again.request_id in {entry.request_id for entry in entries}


def test_a_watch_survives_the_death_of_all_workers_and_misses_nothing(
    client: Client, stack: Stack, workspace: Workspace
) -> None:
    def watch() -> list[int]:
        ends, seqs = 0, []
        with closing(client.watch(workspace.id, timeout=60)) as watched:
            for event in watched:
                seqs.append(event.seq)
                ends += isinstance(event.payload, TaskCompleted)
                if ends == 2:
                    return seqs
        raise AssertionError("the watch has ended")

    with ThreadPoolExecutor(1) as executor:
        watching = executor.submit(watch)
        workspace.await_end(workspace.submit("true"))
        workspace.await_status("idle")
        workers = stack.pids("serve")
        for pid in workers:
            stack.kill(pid)
        eventually(lambda: len(set(stack.pids("serve")) - set(workers)) == len(workers))
        task_id = eventually(lambda: _submitted(workspace))
        faults.await_workers(stack)
        workspace.await_end(task_id)
        assert watching.result(60) == [entry["seq"] for entry in workspace.log()]


def _submitted(workspace: Workspace) -> str:
    """Submits a task. Returns its id; empty while the workers are still starting."""
    response = workspace.rest.call("POST", f"{workspace.path}/tasks", json={"description": "true"})
    return str(response.json()["task_id"]) if response.is_success else ""


async def test_the_asynchronous_client_does_the_same(
    async_client: AsyncClient, workspace: Workspace, gate: Gate
) -> None:
    submitted = await async_client.submit_task(workspace.id, f"{gate.command}\necho never")
    await asyncio.to_thread(workspace.await_phase, submitted.task_id, "tool_call")
    waiting = asyncio.create_task(async_client.cancel_and_wait(workspace.id, timeout=25))
    await asyncio.to_thread(workspace.await_event, "task_cancel_requested", submitted.task_id)
    await asyncio.to_thread(gate.open)
    ended = await waiting
    assert ended.task is not None and ended.task.status is TaskStatus.CANCELLED
    events = [event async for event in async_client.watch(workspace.id, task_id=submitted.task_id)]
    assert isinstance(events[-1].payload, TaskCompleted)
    assert [task.id async for task in async_client.list_tasks(workspace.id)] == [submitted.task_id]
    with pytest.raises(DeadlineExceededError):
        async for _ in async_client.watch(workspace.id, after=events[-1].seq, timeout=0.2):
            raise AssertionError("no event was committed")
