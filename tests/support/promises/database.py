"""Reads a history from a stack's database."""

from collections.abc import Sequence
from typing import Any

from psycopg import Connection
from psycopg.rows import class_row

from tests.support.promises.history import EventRecord, History, TaskRecord

_TASKS = """
SELECT id, workspace_id, status, iterations, forced,
       extract(epoch FROM completed_at)::float AS completed_at,
       extract(epoch FROM cancel_requested_at)::float AS cancel_requested_at,
       extract(epoch FROM cancel_force_at)::float AS force_at
FROM tasks WHERE %(id)s::text IS NULL OR workspace_id = %(id)s
"""
_EVENTS = """
SELECT workspace_id, seq, type, task_id, payload ->> 'status' AS status,
       coalesce((payload ->> 'forced')::boolean, false) AS forced,
       coalesce((payload ->> 'iterations')::integer, 0) AS iterations,
       coalesce((payload ->> 'number')::integer, 0) AS number,
       coalesce(payload #>> '{model_call,status}' = 'interrupted', false)
           AS is_model_call_interrupted,
       coalesce(payload #>> '{tool_call,result,status}' = 'interrupted', false)
           AS is_tool_call_interrupted,
       coalesce(payload -> 'tool_call' <> 'null', false) AS has_tool_call
FROM events WHERE %(id)s::text IS NULL OR workspace_id = %(id)s
"""
_LAST_SEQS = """
SELECT id, last_seq FROM workspaces WHERE %(id)s::text IS NULL OR id = %(id)s
"""


def read_history(
    connection: "Connection[Any]",
    workspace_id: str | None = None,
    promised: Sequence[tuple[str, str]] = (),
) -> History:
    """Reads the history of one workspace, or of all.

    The connection must not be in a transaction.
    """
    parameters = {"id": workspace_id}
    with (
        connection.transaction(),
        connection.cursor(row_factory=class_row(TaskRecord)) as tasks,
        connection.cursor(row_factory=class_row(EventRecord)) as events,
    ):
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        return History(
            tasks={task.id: task for task in tasks.execute(_TASKS, parameters)},
            events=events.execute(_EVENTS, parameters).fetchall(),
            last_seqs=dict(connection.execute(_LAST_SEQS, parameters).fetchall()),
            promised=promised,
        )
