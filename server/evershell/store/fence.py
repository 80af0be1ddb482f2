"""Fences all agents after a restore of the database."""

import psycopg
from psycopg.conninfo import conninfo_to_dict

from evershell.core.errors import OperatorError
from evershell.store.connections import CALLS_NAME, WORKER_NAME, connect_for_command
from evershell.store.leadership import LEADER_LOCK_KEY
from evershell.store.migrate import check_writable

# Epochs that were handed out after the backup are unknown, and would be handed out again. The time
# in seconds is beyond all of them: a workspace gets less than one epoch a second. It is also beyond
# those that an earlier restore of the same backup has led to.
#
# A pod that was placed becomes one of another run, so the fleet controller ends its task and starts
# another agent.
#
# The parameters are the names of the sessions of workers, and the name that the URL gives to
# sessions of the programs.
_FENCE = """
    WITH programs AS (
        SELECT count(*) AS number FROM pg_stat_activity
        WHERE datname = current_database() AND application_name IN ('evershell', %s, %s, %s)
    ), fenced AS (
        UPDATE workspaces
        SET epoch = greatest(epoch + 1, extract(epoch FROM clock_timestamp())::bigint),
            run_id = CASE WHEN run_id IS NOT NULL THEN 'fenced' END
        WHERE (SELECT number FROM programs) = 0
        RETURNING id
    )
    SELECT (SELECT number FROM programs), (SELECT count(*) FROM fenced)
"""


def fence(database_url: str) -> int:
    """Moves each workspace to an epoch that no agent has had, in one statement. Blocks.

    No controller leads meanwhile, and none begins to. Returns the number of workspaces. Raises
    OperatorError if nothing was changed, and what connect_for_command raises.
    """
    name = conninfo_to_dict(database_url).get("application_name")
    with connect_for_command(database_url) as connection, connection.transaction():
        check_writable(connection)
        lock = connection.execute("SELECT pg_try_advisory_xact_lock(%s)", (LEADER_LOCK_KEY,))
        if lock.fetchone() != (True,):
            raise OperatorError(
                "A controller leads, or another fence is in progress. Stop all workers and "
                "controllers first. Nothing was changed."
            )
        try:
            row = connection.execute(_FENCE, (WORKER_NAME, CALLS_NAME, name)).fetchone()
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
