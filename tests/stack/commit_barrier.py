"""Blocks a commit in a workspace, so that a test decides the order of the next transactions."""

from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.stack import Workspace
from tests.support.waiting import eventually


@contextmanager
def next_event_held_up(workspace: Workspace) -> Iterator[None]:
    """Blocks the transaction of the workspace's next event until the context ends.

    The context inserts an event with the next `seq` and does not commit it. A transaction of the
    service that inserts the same `seq` waits until the context ends. Because the waiting
    transaction holds the lock of the workspace, other transactions wait too.
    """
    seq = workspace.log()[-1]["seq"] + 1
    with workspace.stack.database() as connection, connection.transaction(force_rollback=True):
        connection.execute(
            "INSERT INTO events (workspace_id, seq, type, time, payload)"
            " VALUES (%s, %s, 'workspace_stopped', now(), '{}')",
            (workspace.id, seq),
        )
        yield


def await_waiting(workspace: Workspace, statement: str) -> None:
    """Waits until a session waits for a lock in a statement that contains this text."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE %s"
    with workspace.stack.database() as connection:
        eventually(lambda: connection.execute(query, (f"%{statement}%",)).fetchone() != (0,))
