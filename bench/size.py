"""Builds the large database of the bench, once: `python -m bench.size`.

The database has 2,000,000 ended tasks and 10,000,000 events. It is kept in the folder BENCH_CACHE,
by default in the user's cache. The build takes a few minutes and 5 GB of disk space. If it is
interrupted, the next build continues.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

import psycopg

from bench.processes import exit_on_sigterm
from bench.side import Side

TASKS, EVENTS = 2_000_000, 10_000_000
_WORKSPACES = 100_000
# The five events of a task: submitted, started, one iteration completed, cancellation requested,
# ended.
_EVENTS_OF_TASK = EVENTS // TASKS
_TASKS_OF_WORKSPACE = TASKS // _WORKSPACES
# How many workspaces one transaction adds.
_CHUNK = 1_000

_INSERT_WORKSPACES = """
    INSERT INTO workspaces (
        id, org_id, name, status, status_reason, created_at, updated_at, epoch, last_seq
    )
    SELECT 'ws_l_' || i, 'org_demo', 'large', 'stopped', '', now(), now(), 1, %(events)s
    FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS i
"""
_INSERT_TASKS = """
    INSERT INTO tasks (
        id, workspace_id, description, metadata, max_iterations, status, phase, iterations,
        created_at, started_at, completed_at, cancel_requested_by, cancel_credential_kind,
        cancel_requested_at, cancel_reason, cancel_request_id, reason, result, forced,
        input_tokens, output_tokens, model_calls, tool_calls
    )
    SELECT 'task_l_' || i || '_' || j, 'ws_l_' || i, 'make test', '{}', 100, 'cancelled', '', 1,
        now(), now(), now(), 'key_large', 'api_key', now(), '', md5(random()::text), '', 'ok',
        false, 120, 12, 1, 1
    FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS i,
        generate_series(1, %(tasks)s::bigint) AS j
"""
_INSERT_EVENTS = """
    INSERT INTO events (workspace_id, seq, type, time, task_id, request_id, payload)
    SELECT 'ws_l_' || i, (j - 1) * %(events_of_task)s + event.position, event.type, now(),
        'task_l_' || i || '_' || j, md5(random()::text), event.payload::jsonb
    FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS i,
        generate_series(1, %(tasks)s::bigint) AS j, (
        VALUES
            (1, 'task_submitted', '{"description": "make test", "submitted_by": "key_large"}'),
            (2, 'task_started', '{"epoch": 1}'),
            (3, 'iteration_completed',
                '{"number": 1, "tool_call": {"tool": "shell", "output": "ok", "exit_code": 0}}'),
            (4, 'task_cancel_requested',
                '{"cancel": {"requested_by": "key_large", "credential_kind": "api_key"}}'),
            (5, 'task_completed', '{"status": "cancelled", "iterations": 1, "result": "ok"}')
    ) AS event (position, type, payload)
"""


def state_dir() -> Path:
    """The state folder of the stack with the large database."""
    default = Path.home() / ".cache" / "evershell-bench"
    return Path(os.environ.get("BENCH_CACHE", default)) / "large"


def is_built() -> bool:
    """Whether the database is complete."""
    return _marker().exists()


def _marker() -> Path:
    return state_dir().with_name("large.complete")


def build() -> None:
    """Builds the large database, or the part that is missing."""
    exit_on_sigterm()
    state_dir().mkdir(parents=True, exist_ok=True, mode=0o700)
    side = Side("large", state_dir=state_dir())
    try:
        side.start()
        side.take_leadership()
        fill(side.database, _WORKSPACES)
        _marker().touch()
    finally:
        side.stop()


def fill(database: psycopg.Connection[Any], workspaces: int) -> None:
    """Adds workspaces until there are `workspaces`, each with 20 tasks and 100 events."""
    row = database.execute("SELECT count(*) FROM workspaces WHERE name = 'large'").fetchone()
    assert row is not None
    began = time.monotonic()
    for first in range(int(row[0]) + 1, workspaces + 1, _CHUNK):
        values = {
            "first": first,
            "last": first + _CHUNK - 1,
            "tasks": _TASKS_OF_WORKSPACE,
            "events": _TASKS_OF_WORKSPACE * _EVENTS_OF_TASK,
            "events_of_task": _EVENTS_OF_TASK,
        }
        with database.transaction():
            # Makes commits faster. If a crash loses the last ones, the next build repeats them.
            database.execute("SET LOCAL synchronous_commit = off")
            for statement in (_INSERT_WORKSPACES, _INSERT_TASKS, _INSERT_EVENTS):
                database.execute(statement, values)
        print(
            f"{first + _CHUNK - 1:,} of {workspaces:,} workspaces, "
            f"{time.monotonic() - began:.0f} s",
            file=sys.stderr,
        )
    database.execute("VACUUM (ANALYZE)")
    database.execute("CHECKPOINT")


if __name__ == "__main__":
    build()
