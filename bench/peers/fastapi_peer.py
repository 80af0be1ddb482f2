"""The FastAPI peer: starts its tasks, and reads what it has recorded."""

import hashlib
import uuid
from collections.abc import Sequence
from typing import Any

import psycopg

from bench.peers.peer import HttpRequest, Peer

_ADD_KEY = """
INSERT INTO api_keys (key_hash, id, org_id, scopes)
VALUES (%s, 'key_peer', 'org_peer', '{workspace:read,workspace:write,tasks:write}')
"""
_ARM = (
    """
    INSERT INTO workspaces (id, org_id, status, current_task_id, last_seq)
    SELECT 'ws_' || name, 'org_peer', 'busy', 'task_' || name, 2 FROM unnest(%s::text[]) AS name
    """,
    """
    INSERT INTO tasks (id, workspace_id, status)
    SELECT 'task_' || name, 'ws_' || name, 'running' FROM unnest(%s::text[]) AS name
    """,
    """
    INSERT INTO events (workspace_id, seq, type, time, task_id, request_id, payload)
    SELECT 'ws_' || name, seq, type, now(), 'task_' || name, 'req_' || name, '{}'
    FROM unnest(%s::text[]) AS name,
        (VALUES (1, 'task_submitted'), (2, 'task_started')) AS started (seq, type)
    """,
)
# A cancellation is recorded if the task has its intent, and if the event of this intent is the last
# event of the log, at position 3.
_RECORDED = """
SELECT tasks.id, count(*)
FROM tasks
JOIN workspaces ON workspaces.id = tasks.workspace_id
JOIN events ON events.workspace_id = workspaces.id AND events.type = 'task_cancel_requested'
WHERE tasks.id = ANY(%s)
    AND tasks.cancel_requested_at = events.time AND tasks.cancel_requested_by = 'key_peer'
    AND events.task_id = tasks.id AND events.seq = 3 AND workspaces.last_seq = 3
GROUP BY tasks.id
"""


class FastApiPeer(Peer):
    """A FastAPI application that keeps this service's promises for a single call, over REST."""

    name = "fastapi"
    _module = "bench.peers.fastapi_app"

    def arm(self, count: int) -> Sequence[HttpRequest]:
        names = [uuid.uuid4().hex for _ in range(count)]
        headers = {"Authorization": f"Bearer {self._key}"}
        with psycopg.connect(self._database_url) as connection:
            for statement in _ARM:
                connection.execute(statement, [names])
            # Updates the statistics: the query plans so far are for empty tables.
            connection.execute("ANALYZE")
        return [
            HttpRequest(f"/v1/workspaces/ws_{name}/task/cancel", headers, b"", f"task_{name}")
            for name in names
        ]

    def _prepare(self) -> None:
        with psycopg.connect(self._database_url) as connection:
            connection.execute(_ADD_KEY, [hashlib.sha256(self._key.encode()).digest()])

    def _recorded(
        self, connection: "psycopg.Connection[Any]", task_ids: Sequence[str]
    ) -> dict[str, int]:
        return dict(connection.execute(_RECORDED, [task_ids]).fetchall())
