"""Callers that disconnect during CancelTask.

The intent is recorded completely or not at all, and no session of the database stays blocked.
"""

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.stack.commit_barrier import await_waiting, next_event_held_up
from tests.support import faults
from tests.support.lengths import smoke
from tests.support.stack import Gate, Stack, Workspace
from tests.support.waiting import eventually

# Makes a call with these fields and returns a function that disconnects the caller.
Caller = Callable[[Workspace, dict[str, Any]], Callable[[], None]]


def over_http(workspace: Workspace, fields: dict[str, Any]) -> Callable[[], None]:
    """Makes a call over HTTP. The returned function closes the connection."""
    url, body = urlsplit(workspace.stack.ready["rest_url"]), json.dumps(fields)
    connection = socket.create_connection((url.hostname, url.port))
    head = (
        f"POST {workspace.path}/task/cancel HTTP/1.1\r\nhost: {url.netloc}\r\n"
        f"content-length: {len(body)}\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer {workspace.stack.tokens['full_access']}\r\n\r\n"
    )
    connection.sendall(f"{head}{body}".encode())
    return connection.close


def over_grpc(workspace: Workspace, fields: dict[str, Any]) -> Callable[[], None]:
    """Makes a call over gRPC. The returned function cancels the call."""
    call = workspace.stack.grpc().begin("CancelTask", workspace_id=workspace.id, **fields)

    def go() -> None:
        assert call.cancel()

    return go


@contextmanager
def workspace_locked(workspace: Workspace) -> Iterator[None]:
    """Locks the workspace, so that a transaction that changes it blocks before its first change."""
    with workspace.stack.database() as connection, connection.transaction(force_rollback=True):
        connection.execute("SELECT 1 FROM workspaces WHERE id = %s FOR UPDATE", (workspace.id,))
        yield


def agent_frozen(workspace: Workspace) -> AbstractContextManager[None]:
    return workspace.stack.frozen_process(workspace.stack.agent_pid(workspace.id))


@contextmanager
def nothing_held_up(workspace: Workspace) -> Iterator[None]:
    yield


def seen_in_database(workspace: Workspace, task_id: str) -> None:
    await_waiting(workspace, "record_cancellation")


def seen_recorded(workspace: Workspace, task_id: str) -> None:
    eventually(lambda: faults.intent_of(workspace, task_id) == "whole")


POINTS: dict[
    str,
    tuple[
        Callable[[Workspace], AbstractContextManager[None]],
        Callable[[Workspace, str], None],
        dict[str, Any],
    ],
] = {
    "before the intent": (workspace_locked, seen_in_database, {}),
    "within the intent": (next_event_held_up, seen_in_database, {}),
    "during the signal": (agent_frozen, seen_recorded, {}),
    "during the wait": (nothing_held_up, seen_recorded, {"wait": {"seconds": 30}}),
}


@pytest.fixture(scope="module")
def bed(stack: Stack) -> Workspace:
    """Returns a workspace that all cases share."""
    return Workspace(stack)


@pytest.mark.parametrize("caller", smoke([over_http, over_grpc], [over_grpc]))
@pytest.mark.parametrize("point", POINTS)
def test_a_caller_that_goes_away(bed: Workspace, point: str, caller: Caller) -> None:
    hold_up, await_seen, fields = POINTS[point]
    if "wait" in fields and caller is over_http:
        fields = {"wait": "30s"}
    gate = Gate(bed)
    task_id = bed.begin(gate.command)
    with hold_up(bed):
        go = caller(bed, fields)
        await_seen(bed, task_id)
        go()
        # The disconnect ends the query in the database before the query's own limit of 5 s.
        eventually(lambda: in_database(bed) == 0, 3)
    intent = faults.intent_of(bed, task_id)
    assert intent == "whole" or (intent == "absent" and await_seen is seen_in_database)
    gate.open()
    bed.await_end(task_id)
    faults.assert_story(
        bed,
        task_id,
        status="cancelled" if intent == "whole" else "completed",
        intent=intent == "whole",
    )
    assert bed.cancel()["outcome"] == "no_active_task"


def in_database(workspace: Workspace) -> int:
    """Returns the number of database sessions that are recording a cancellation."""
    query = (
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE state = 'active' AND query LIKE %s AND pid <> pg_backend_pid()"
    )
    with workspace.stack.database() as connection:
        row = connection.execute(query, ("%record_cancellation%",)).fetchone()
    assert row is not None
    return int(row[0])
