"""Sessions of commands, such as `migrate` and `fence`, without the limits of calls."""

import asyncio
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo

from evershell.store.pool import conninfo
from evershell.store.primary import SESSION_PID, has_standbys, primary_of, refuse_pooler
from evershell.store.session_settings import UNLIMITED

# The name of these sessions. They end a little later than their command, so a fence must not count
# them as sessions of a worker or a controller.
COMMAND_NAME = "evershell command"
_CONNECT_SECONDS = 10


def primary_conninfo(database_url: str) -> str:
    """The connection string of the primary, for such a session. Blocks.

    Raises psycopg.Error, which is a PoolerError if the URL leads to a pooler.
    """
    server = make_conninfo(database_url, application_name=COMMAND_NAME)
    if has_standbys(server):
        server = asyncio.run(primary_of(server))
    # A pooler refuses the options, so they are added afterwards.
    with psycopg.connect(server, autocommit=True, connect_timeout=_CONNECT_SECONDS) as connection:
        refuse_pooler(connection, connection.execute(SESSION_PID).fetchone())
    return conninfo(server, UNLIMITED)


def connect_for_command(database_url: str) -> psycopg.Connection[Any]:
    """Such a session, which commits each statement. Raises what `primary_conninfo` raises."""
    return psycopg.connect(primary_conninfo(database_url), autocommit=True)
