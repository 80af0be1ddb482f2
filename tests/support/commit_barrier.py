"""Holds up a commit of a workspace, so that a test decides in which order others come to it."""

from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.stack import Workspace
from tests.support.waiting import eventually


@contextmanager
def next_event_held_up(workspace: Workspace) -> Iterator[None]:
    """Whoever commits the workspace's next event holds its lock and waits until the context is
    left; others wait behind it.

    The test has inserted an event of the same `seq` and has not committed it.
    """
    seq = workspace.log()[-1]["seq"] + 1
    with workspace.stack.database() as connection, connection.transaction(force_rollback=True):
        connection.execute(
            "INSERT INTO events (workspace_id, seq, type, time, payload) VALUES (%s, %s, 'workspace_stopped', now(), '{}')",
            (workspace.id, seq),
        )
        yield


def await_waiting(workspace: Workspace, statement: str) -> None:
    """Until a session waits for a lock with a statement of this kind."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE %s"
    with workspace.stack.database() as connection:
        eventually(lambda: connection.execute(query, (f"%{statement}%",)).fetchone() != (0,))
