"""Connections, and the one place where PostgreSQL's failures become the core's."""

import asyncio
import os
import select
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import psycopg
from psycopg import AsyncConnection
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from server.core import deadline
from server.core.errors import UnavailableError

Connection = AsyncConnection[TupleRow]
Pool = AsyncConnectionPool[Connection]

# The time zone is set so that a moment reads as it was written, the isolation since the store's
# locking builds on it. A session that hangs within a transaction holds the lock of a workspace, so
# the server ends it.
_SESSION_OPTIONS = (
    r"-c TimeZone=UTC -c default_transaction_isolation=read\ committed "
    "-c statement_timeout=5s -c idle_in_transaction_session_timeout=10s "
    # A session whose client has hung up (answered_within) gives up its wait for a lock, and its
    # connection, by itself.
    "-c client_connection_check_interval=500ms"
)
# How long one attempt to connect may take, and how long data may stay unacknowledged, before the
# connection is given up.
_CONNECT_TIMEOUT_SECONDS = 5
_TCP_USER_TIMEOUT_MILLISECONDS = 5_000
# How long a call waits for a connection, and then for the server's answers; less when its caller's
# time is over sooner.
ACQUIRE_TIMEOUT_SECONDS = 1.5
ANSWER_TIMEOUT_SECONDS = 3.0
# After this the pool stops trying by itself; the next request for a connection tries again, without
# a backoff grown long.
_RECONNECT_TIMEOUT_SECONDS = 2.0

_UNAVAILABLE = (
    # Includes PoolTimeout, PoolClosed, AdminShutdown, CannotConnectNow, TooManyConnections and
    # QueryCanceled. For a full or broken disk it includes DiskFull, IoError, CrashShutdown and, for
    # later statements of the same pipeline, PipelineAborted.
    psycopg.OperationalError,
    psycopg.InterfaceError,
    # SQLSTATE class XX, internal errors of PostgreSQL: for example an exceeded disk quota or file
    # size, or an unreadable page.
    psycopg.errors.InternalError_,
    psycopg.errors.DataCorrupted,
    psycopg.errors.IndexCorrupted,
    # Timeouts of sessions and transactions. They end the session.
    psycopg.errors.IdleInTransactionSessionTimeout,
    psycopg.errors.TransactionTimeout,
    # The server has become a standby.
    psycopg.errors.ReadOnlySqlTransaction,
)


def conninfo(database_url: str, session_options: str = _SESSION_OPTIONS) -> str:
    """The database with the settings of our sessions; what the URL itself says about the network
    stays.
    """
    given = conninfo_to_dict(database_url)
    parameters = {
        "connect_timeout": _CONNECT_TIMEOUT_SECONDS,
        "tcp_user_timeout": _TCP_USER_TIMEOUT_MILLISECONDS,
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 2,
        "application_name": "evershell",
        **given,
        "options": f"{given.get('options') or ''} {session_options}".strip(),
    }
    return make_conninfo("", **parameters)


@asynccontextmanager
async def open_pool(
    database_url: str,
    *,
    min_size: int = 2,
    max_size: int = 10,
    acquire_timeout_seconds: float = ACQUIRE_TIMEOUT_SECONDS,
) -> AsyncIterator[Pool]:
    """A pool of connections, closed when the context is left. It opens without a database and finds
    it once it is there.

    A call that gets no connection within `acquire_timeout_seconds` raises UnavailableError.
    """
    pool: Pool = AsyncConnectionPool(
        conninfo(database_url),
        kwargs={"autocommit": True},
        min_size=min_size,
        max_size=max_size,
        timeout=acquire_timeout_seconds,
        reconnect_timeout=_RECONNECT_TIMEOUT_SECONDS,
        open=False,
    )
    await pool.open(wait=False)
    try:
        yield pool
    finally:
        await pool.close()


@asynccontextmanager
async def connected(pool: Pool) -> AsyncIterator[Connection]:
    """A connection of the pool. Raises UnavailableError for all that says that the database is not
    there.
    """
    try:
        while True:
            async with pool.connection(timeout=deadline.bounded(pool.timeout)) as connection:
                if not _has_ended(connection):
                    with answered_within(connection, deadline.bounded(ANSWER_TIMEOUT_SECONDS)):
                        try:
                            yield connection
                        except asyncio.CancelledError:
                            # A pipeline that is cancelled may never be left (psycopg 3.3), and the
                            # pool takes its connection for idle: what is written on it next would
                            # be answered, and not be committed.
                            await connection.close()
                            raise
                    return
                # The pool makes a new one in its place.
                await connection.close()
    except _UNAVAILABLE as error:
        raise UnavailableError(str(error)) from error


@contextmanager
def answered_within(connection: AsyncConnection[Any], limit_seconds: float) -> Iterator[None]:
    """Hangs up when the block takes longer; what waits for the server there then raises
    psycopg.OperationalError.

    The server's own limits are of no use when it is frozen. Nor is cancelling the wait: psycopg
    answers that by asking the server.
    """
    timer = asyncio.get_running_loop().call_later(limit_seconds, _hang_up, connection)
    try:
        yield
    finally:
        timer.cancel()


def _hang_up(connection: AsyncConnection[Any]) -> None:
    # The descriptor stays psycopg's to close.
    with suppress(psycopg.Error, OSError), socket.socket(fileno=os.dup(connection.fileno())) as end:
        end.shutdown(socket.SHUT_RDWR)


def _has_ended(connection: Connection) -> bool:
    """Whether the server has ended the session: an idle one has nothing to read, except the
    server's goodbye.

    This costs a system call, where the pool's own check would cost a round trip each time, and a
    second for each dead connection.
    """
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))
