"""Adds old tasks to the workspaces of a run. The service removes them during the faults."""

from collections.abc import Iterator, Sequence

from tests.support.stack import Stack
from tests.support.waiting import eventually

# The number of old tasks in each workspace.
_TASKS = 2_000
_REMOVED_SECONDS = 60.0
# Makes the existing events of the workspace as old as the old tasks.
_AGE = "UPDATE events SET time = time - interval '9 days' WHERE workspace_id = %(id)s"
_NEXT = "UPDATE workspaces SET last_seq = last_seq + 2 * %(tasks)s WHERE id = %(id)s"
_ADD_TASKS = """
    INSERT INTO tasks (
        id, workspace_id, description, metadata, max_iterations, status, phase, iterations,
        created_at, completed_at, reason, result, forced, input_tokens, output_tokens, model_calls,
        tool_calls
    )
    SELECT 'task_old_' || %(id)s || '_' || i, %(id)s, 'true', '{}', 100, 'completed', '', 0,
        now() - interval '9 days', now() - interval '9 days', '', '', false, 0, 0, 0, 0
    FROM generate_series(1, %(tasks)s::bigint) AS i
"""
_ADD_EVENTS = """
    INSERT INTO events (workspace_id, seq, type, time, task_id, payload)
    SELECT w.id, w.last_seq - 2 * (%(tasks)s - i) - 2 + event.position, event.type,
        now() - interval '9 days', 'task_old_' || w.id || '_' || i, event.payload::jsonb
    FROM workspaces w, generate_series(1, %(tasks)s::bigint) AS i, (
        VALUES (1, 'task_submitted', '{}'), (2, 'task_completed', '{"status": "completed"}')
    ) AS event (position, type, payload)
    WHERE w.id = %(id)s
"""
_LEFT = "SELECT count(*) FROM events WHERE task_id LIKE 'task\\_old\\_%'"


def add(stack: Stack, workspace_ids: Sequence[str]) -> None:
    """Adds old tasks to idle workspaces.

    Kills the controllers, because a new leader begins to remove old tasks at once.
    """
    with stack.database() as connection:
        for workspace_id in workspace_ids:
            with connection.transaction():
                for statement in (_NEXT, _AGE, _ADD_TASKS, _ADD_EVENTS):
                    connection.execute(statement, {"id": workspace_id, "tasks": _TASKS})
    _kill_leader(stack)


def left(stack: Stack) -> Iterator[str]:
    """Yields a line if the service does not remove all old tasks."""
    if not _count(stack):
        return
    # The outages of the run may have interrupted the removal. A new leader begins it at once.
    _kill_leader(stack)
    try:
        eventually(lambda: not _count(stack), _REMOVED_SECONDS)
    except TimeoutError:
        yield f"{_count(stack)} events of old tasks were not removed"


def _kill_leader(stack: Stack) -> None:
    for pid in stack.pids("fleet"):
        stack.kill(pid)


def _count(stack: Stack) -> int:
    with stack.database() as connection:
        row = connection.execute(_LEFT).fetchone()
    assert row is not None
    return int(row[0])
