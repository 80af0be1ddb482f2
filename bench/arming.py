"""Puts running tasks into the database before a measurement, and counts the outcomes after it."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import psycopg

from bench.servers import floor

ORG_ID = "org_demo"
# How many events the log of a workspace has once its first task runs: provisioned, submitted and
# started.
_EVENTS = 3
_numbers = itertools.count(1)

_WORKSPACES = """
    INSERT INTO workspaces (
        id, org_id, name, status, status_reason, created_at, updated_at, current_task_id, epoch,
        last_seq, agent_address, lease_expires_at
    )
    SELECT 'ws_' || %(name)s || '_' || i, %(org)s, 'bench', 'busy', '', now(), now(),
        'task_' || %(name)s || '_' || i, 1, 3,
        (%(agents)s::text[])[1 + (i - 1) %% cardinality(%(agents)s::text[])],
        now() + interval '1 day'
    FROM generate_series(1, %(count)s) AS i
"""
_TASKS = """
    INSERT INTO tasks (
        id, workspace_id, description, metadata, max_iterations, status, phase, iterations,
        created_at, started_at, reason, result, forced, input_tokens, output_tokens, model_calls,
        tool_calls
    )
    SELECT 'task_' || %(name)s || '_' || i, 'ws_' || %(name)s || '_' || i, 'sleep 600', '{}', 100,
        'running', 'tool_call', 0, now(), now(), '', '', false, 0, 0, 1, 1
    FROM generate_series(1, %(count)s) AS i
"""
_LOGS = """
    INSERT INTO events (workspace_id, seq, type, time, task_id, payload)
    SELECT 'ws_' || %(name)s || '_' || i, event.seq, event.type, now(),
        CASE WHEN event.seq > 1 THEN 'task_' || %(name)s || '_' || i END, event.payload::jsonb
    FROM generate_series(1, %(count)s) AS i, (
        VALUES
            (1, 'workspace_provisioned', '{}'),
            (2, 'task_submitted',
                '{"description": "sleep 600", "max_iterations": 100, "submitted_by": "bench"}'),
            (3, 'task_started', '{"epoch": 1}')
    ) AS event (seq, type, payload)
"""
_END_TASKS = """
    UPDATE tasks SET status = 'cancelled', completed_at = now()
    WHERE workspace_id = ANY(%(ids)s) AND completed_at IS NULL
"""
_NEXT_TASKS = """
    INSERT INTO tasks (
        id, workspace_id, description, metadata, max_iterations, status, phase, iterations,
        created_at, started_at, reason, result, forced, input_tokens, output_tokens, model_calls,
        tool_calls
    )
    SELECT 'task_' || substr(id, 4) || %(suffix)s, id, 'sleep 600', '{}', 100,
        'running', 'tool_call', 0, now(), now(), '', '', false, 0, 0, 1, 1
    FROM unnest(%(ids)s::text[]) AS id
"""
_NEXT_EVENTS = """
    INSERT INTO events (workspace_id, seq, type, time, task_id, payload)
    SELECT w.id, w.last_seq + event.number, event.type, now(),
        CASE WHEN event.number = 1 THEN w.current_task_id
            ELSE 'task_' || substr(w.id, 4) || %(suffix)s END,
        event.payload::jsonb
    FROM workspaces w, (
        VALUES
            (1, 'task_completed', '{"status": "cancelled"}'),
            (2, 'task_submitted',
                '{"description": "sleep 600", "max_iterations": 100, "submitted_by": "bench"}'),
            (3, 'task_started', '{"epoch": 1}')
    ) AS event (number, type, payload)
    WHERE w.id = ANY(%(ids)s)
"""
_TAKE_NEXT = """
    UPDATE workspaces
    SET last_seq = last_seq + 3, current_task_id = 'task_' || substr(id, 4) || %(suffix)s
    WHERE id = ANY(%(ids)s)
"""
# `whole` counts running tasks whose cancellation is recorded with exactly one event, at the next
# position of the log. `touched` counts tasks that have ended or have any trace of a cancellation.
_COUNT = """
    SELECT
        count(*) FILTER (
            WHERE t.cancel_requested_at IS NOT NULL AND t.completed_at IS NULL
                AND w.last_seq = e.started + 1 AND e.requests = 1 AND e.first = e.started + 1
                AND e.events = 1
        ) AS whole,
        count(*) FILTER (
            WHERE t.cancel_requested_at IS NOT NULL OR t.completed_at IS NOT NULL
                OR w.last_seq <> e.started OR e.events > 0
        ) AS touched
    FROM unnest(%(ids)s::text[]) AS wanted (id)
    JOIN workspaces w ON w.id = wanted.id
    JOIN tasks t ON t.id = w.current_task_id
    -- Joins by workspace, so that the events of all other workspaces are not read.
    CROSS JOIN LATERAL (
        SELECT started.seq AS started, count(later.seq) AS events, min(later.seq) AS first,
            count(*) FILTER (WHERE later.type = 'task_cancel_requested') AS requests
        FROM events started
        LEFT JOIN events later ON later.workspace_id = w.id AND later.seq > started.seq
        WHERE started.workspace_id = w.id AND started.task_id = t.id
            AND started.type = 'task_started'
        GROUP BY started.seq
    ) e
"""
# The payload of an `iteration_completed` event. With it, a message of WatchEvents has about 237
# bytes; the exact number depends on the ids.
ITERATION = json.dumps(
    {
        "number": 1,
        "model_call": {
            "model": "scripted",
            "content": "The tests pass. The type check comes next, then the documents and "
            "the change log of it.",
            "input_tokens": "120",
            "output_tokens": "12",
            "duration_ms": "3",
            "status": "completed",
        },
        "tool_call": {
            "id": "call_1",
            "name": "shell",
            "arguments": '{"command": "make test"}',
            "result": {
                "status": "exited",
                "exit_code": 0,
                "output": "312 passed in 20.1 s, 0 failed\n",
            },
            "duration_ms": "12",
        },
    }
)


class WrongOutcomeError(Exception):
    """Raised if the callers were told something other than what the database has."""


@dataclass(frozen=True, slots=True)
class Armed:
    """Workspaces, each with a running task and an agent that acknowledges signals."""

    workspace_ids: list[str]
    # How many tasks each workspace had before the running one.
    earlier: int = 0

    def task_id(self, workspace_id: str) -> str:
        """The task that runs in the workspace."""
        return "task_" + workspace_id.removeprefix("ws_") + _suffix(self.earlier)


class RunningTasks:
    """Gives the agents of a window one task after the other."""

    def __init__(self, database: psycopg.Connection[Any]) -> None:
        self.database = database
        self._tasks: Armed | None = None

    def next(self, agent_addresses: Sequence[str]) -> Armed:
        """Ends the previous task of each agent, if there is one, and gives the agent a new task."""
        if self._tasks is None:
            self._tasks = arm(self.database, len(agent_addresses), agent_addresses)
        else:
            self._tasks = arm_again(self.database, self._tasks)
        return self._tasks


def arm(database: psycopg.Connection[Any], count: int, agent_addresses: Sequence[str]) -> Armed:
    """Creates `count` workspaces with running tasks, spread over the agents."""
    name = f"b{next(_numbers)}"
    values = {"name": name, "count": count, "org": ORG_ID, "agents": list(agent_addresses)}
    with database.transaction():
        for statement in (_WORKSPACES, _TASKS, _LOGS):
            database.execute(statement, values)
    return Armed([f"ws_{name}_{number}" for number in range(1, count + 1)])


def arm_again(database: psycopg.Connection[Any], armed: Armed) -> Armed:
    """Ends the task of each workspace, and gives the workspace and its agent a new task."""
    following = replace(armed, earlier=armed.earlier + 1)
    values = {"ids": armed.workspace_ids, "suffix": _suffix(following.earlier)}
    with database.transaction():
        for statement in (_END_TASKS, _NEXT_TASKS, _NEXT_EVENTS, _TAKE_NEXT):
            database.execute(statement, values)
    return following


def _suffix(earlier: int) -> str:
    return f"_{earlier}" if earlier else ""


def check(database: psycopg.Connection[Any], armed: Armed, accepted: int) -> None:
    """Raises WrongOutcomeError unless the database has exactly `accepted` cancellations.

    Each must have its intent and exactly one event, at the next position of the log.
    """
    row = database.execute(_COUNT, {"ids": armed.workspace_ids}).fetchone()
    assert row is not None
    whole, touched = row
    if not whole == touched == accepted:
        raise WrongOutcomeError(
            f"{accepted} cancellations were accepted; the database has {whole} whole ones "
            f"and {touched} tasks with any trace of one"
        )


def remove(database: psycopg.Connection[Any]) -> None:
    """Removes the workspaces of all windows, so that the leading controller does not find them."""
    with database.transaction():
        # Waits for a controller that is ending one of these workspaces: otherwise, the controller
        # would add events to a log that this transaction has already removed.
        database.execute("LOCK TABLE workspaces IN EXCLUSIVE MODE")
        for table, column in (("events", "workspace_id"), ("tasks", "workspace_id")):
            database.execute(f"DELETE FROM {table} WHERE {column} LIKE 'ws\\_b%\\_%'")
        database.execute("DELETE FROM workspaces WHERE id LIKE 'ws\\_b%\\_%'")


def prepare_floor(database: psycopg.Connection[Any], count: int) -> list[str]:
    """Creates the floor's schema and the rows of `bench_rows`. Returns the ids of the rows.

    From then on, this connection uses the tables of the floor.
    """
    database.execute(floor.SCHEMA_SQL.encode())
    database.execute(
        "INSERT INTO bench_rows SELECT 'row_' || i, 0 FROM generate_series(1, %s) AS i", (count,)
    )
    return [f"row_{number}" for number in range(1, count + 1)]


def create_log(database: psycopg.Connection[Any], events: int, agent_address: str) -> str:
    """Creates a workspace with a long log of iterations, and returns its id."""
    armed = arm(database, 1, [agent_address])
    workspace_id = armed.workspace_ids[0]
    with database.transaction():
        database.execute(
            """
            INSERT INTO events (workspace_id, seq, type, time, task_id, payload)
            SELECT %s, i, 'iteration_completed', now(), %s,
                jsonb_set(%s::jsonb, '{number}', to_jsonb(i))
            FROM generate_series(%s::bigint, %s::bigint) AS i
            """,
            (workspace_id, armed.task_id(workspace_id), ITERATION, _EVENTS + 1, events),
        )
        database.execute(
            "UPDATE workspaces SET last_seq = %s WHERE id = %s", (events, workspace_id)
        )
    return workspace_id
