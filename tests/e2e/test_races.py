"""Cancellation against natural completion, forced both ways: a lock on the workspace's row holds both up, in a known order."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from tests.e2e.stack import Gate, Workspace, eventually


@contextmanager
def held_up(workspace: Workspace) -> Iterator[psycopg.Connection[Any]]:
    """Nothing of the workspace is committed until the context is left; what waits then goes on in the order in which it came."""
    with workspace.stack.database() as connection, connection.transaction():
        connection.execute("SELECT 1 FROM workspaces WHERE id = %s FOR UPDATE", (workspace.id,))
        yield connection


def await_waiting(workspace: Workspace, statement: str, sessions: int = 1) -> None:
    """Until so many sessions wait for a lock with a statement of this kind."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE %s"
    with workspace.stack.database() as connection:

        def waiting() -> int:
            row = connection.execute(query, (f"%{statement}%",)).fetchone()
            return int(row[0]) if row is not None else 0

        eventually(lambda: waiting() >= sessions)


CANCELLATION = "record_cancellation"
COMMIT = "FROM workspaces WHERE id = $1 FOR UPDATE"


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


def test_a_cancellation_that_comes_before_the_completion_wins(workspace: Workspace, gate: Gate, pool: ThreadPoolExecutor) -> None:
    task_id = workspace.submit(gate.command)
    workspace.await_phase(task_id, "tool_call")
    with held_up(workspace):
        cancelling = pool.submit(workspace.cancel)
        await_waiting(workspace, CANCELLATION)
        gate.open()
        await_waiting(workspace, COMMIT)
    assert cancelling.result()["outcome"] == "accepted"
    end = workspace.await_end(task_id)
    assert (end["status"], end["result"]) == ("cancelled", "Ran 1 command.")


@pytest.mark.parametrize("named", [True, False])
def test_a_completion_that_comes_before_the_cancellation_wins(
    workspace: Workspace, gate: Gate, pool: ThreadPoolExecutor, named: bool
) -> None:
    task_id = workspace.submit(gate.command)
    fields = {"task_id": task_id} if named else {}
    workspace.await_phase(task_id, "tool_call")
    with held_up(workspace):
        gate.open()
        # The commit, and the heartbeat that tells the end of the tool call; there is one heartbeat at a time.
        await_waiting(workspace, COMMIT, sessions=2)
        cancelling = pool.submit(lambda: workspace.rest.post(f"{workspace.path}/task/cancel", fields))
        await_waiting(workspace, CANCELLATION)
    answer = cancelling.result()
    end = workspace.await_end(task_id)
    assert end["status"] == "completed"
    assert "cancel" not in end
    assert answer["outcome"] == ("already_finished" if named else "no_active_task")
    if named:
        assert answer["task"]["status"] == "completed"


def test_a_cancellation_before_the_agent_has_begun_means_zero_iterations(workspace: Workspace, pool: ThreadPoolExecutor) -> None:
    """It waits behind the submission, so it is recorded before the agent is even given the task."""
    with ThreadPoolExecutor(1) as submitter:
        with held_up(workspace):
            submitting = submitter.submit(workspace.submit, "touch never")
            await_waiting(workspace, COMMIT)
            cancelling = pool.submit(workspace.cancel)
            await_waiting(workspace, CANCELLATION)
        task_id = submitting.result()
    answer = cancelling.result()
    assert (answer["outcome"], answer["task_id"]) == ("accepted", task_id)
    end = workspace.await_end(task_id)
    assert (end["status"], end["iterations"]) == ("cancelled", 0)
    assert not (workspace.stack.files(workspace.id) / "never").exists()
