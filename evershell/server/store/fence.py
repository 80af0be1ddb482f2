"""Fences the agents of a lost part of the database's history, after a restore."""

from typing import Any

import psycopg

from evershell.server.store.owner_session import connect_as_owner

# Epochs that were handed out after the backup are unknown, and would be handed out again. The time
# in seconds is beyond all of them: a workspace gets less than one epoch a second. It is also beyond
# those that an earlier restore of the same backup has led to.
#
# A pod that was placed becomes one of another run, so the fleet controller ends its task and starts
# another agent.
_FENCE = """
    UPDATE workspaces
    SET epoch = greatest(epoch + 1, extract(epoch FROM clock_timestamp())::bigint),
        host = CASE WHEN host IS NOT NULL THEN 'fenced' END
"""
# The URL may give the programs, and this session, another name.
_PROGRAMS = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
      AND application_name IN ('evershell', current_setting('application_name'))
"""


class ProgramsConnectedError(Exception):
    """Workers or controllers use the database. The message is for the operator."""


def fence(database_url: str) -> int:
    """Moves each workspace to an epoch that no agent has had. Blocks.

    Returns the number of workspaces. Raises ProgramsConnectedError, and what connect_as_owner
    raises.
    """
    with connect_as_owner(database_url) as connection:
        programs = _count(connection)
        if programs:
            raise ProgramsConnectedError(
                f"Programs of this service have {programs} connections to the database. Stop all "
                "workers and controllers first. Nothing was changed."
            )
        return connection.execute(_FENCE).rowcount


def _count(connection: psycopg.Connection[Any]) -> int:
    row = connection.execute(_PROGRAMS).fetchone()
    assert row is not None
    return int(row[0])
