"""Fences all agents after a restore of the database."""

import psycopg
from psycopg.conninfo import conninfo_to_dict

from evershell.core.errors import OperatorError
from evershell.store.connections import CALLS_NAME, WORKER_NAME, connect_for_command
from evershell.store.leadership import LEADER_LOCK_KEY
from evershell.store.migrate import check_writable
from evershell.store.statements import statements

SQL = statements("fence")


def fence(database_url: str) -> int:
    """Moves each workspace to an epoch that no agent has had, in one statement. Synchronous.

    Meanwhile, no controller can lead. Returns the number of workspaces. Raises OperatorError, and
    changes nothing, if a program of this service is connected, if another fence is in progress, or
    if the database is read-only or lacks the schema. Also raises the errors of connect_for_command.
    """
    name = conninfo_to_dict(database_url).get("application_name")
    names = {"worker": WORKER_NAME, "calls": CALLS_NAME, "url_name": name}
    with connect_for_command(database_url) as connection, connection.transaction():
        check_writable(connection)
        lock = connection.execute(SQL.try_leader_lock, {"key": LEADER_LOCK_KEY})
        if lock.fetchone() != (True,):
            raise OperatorError(
                "A controller leads, or another fence is in progress. Stop all workers and "
                "controllers first. Nothing was changed."
            )
        try:
            row = connection.execute(SQL.fence, names).fetchone()
        except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn) as error:
            raise OperatorError(
                "The database does not have the schema of this service. Check DATABASE_URL, or "
                "run `evershell migrate` first. Nothing was changed."
            ) from error
    assert row is not None
    programs, workspaces = row
    if programs:
        raise OperatorError(
            f"Programs of this service are connected to the database (connections: {programs}). "
            "Stop all workers and controllers first. Nothing was changed."
        )
    return int(workspaces)
