"""Opens connections to PostgreSQL, and translates its failures into UnavailableError."""

import asyncio
import select
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg_pool import AsyncConnectionPool

from evershell.core import deadline
from evershell.core.errors import UnavailableError
from evershell.store import session_settings
from evershell.store.hang_up import hang_up_after
from evershell.store.primary import PrimaryConnection

Connection = PrimaryConnection
Pool = AsyncConnectionPool[Connection]

# How long one attempt to connect may take.
_CONNECT_TIMEOUT_SECONDS = 5
# How long sent data may stay unacknowledged before the kernel closes the connection.
_TCP_USER_TIMEOUT_MILLISECONDS = 5_000
# How long a call waits for a connection, and then for the server's answers. It waits less if its
# deadline is earlier.
ACQUIRE_TIMEOUT_SECONDS = 1.5
ANSWER_TIMEOUT_SECONDS = 3.0
# How long the pool retries to connect. The next request for a connection starts again, with the
# shortest backoff.
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


def conninfo(database_url: str, session_options: str = session_settings.OPTIONS) -> str:
    """The connection string for the database, with these options of its session.

    Network settings of the URL take precedence.
    """
    url_parameters = conninfo_to_dict(database_url)
    parameters = {
        "connect_timeout": _CONNECT_TIMEOUT_SECONDS,
        "tcp_user_timeout": _TCP_USER_TIMEOUT_MILLISECONDS,
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 2,
        "application_name": "evershell",
        **{name: value for name, value in url_parameters.items() if name != "options"},
    }
    options = f"{url_parameters.get('options') or ''} {session_options}".strip()
    return make_conninfo("", **parameters, **({"options": options} if options else {}))


@asynccontextmanager
async def open_pool(
    database_url: str,
    *,
    min_size: int = 2,
    max_size: int = 10,
    acquire_timeout_seconds: float = ACQUIRE_TIMEOUT_SECONDS,
    behind_pooler: bool = False,
) -> AsyncIterator[Pool]:
    """A pool of connections, closed when the context is left.

    The pool opens even if the database cannot be reached, and connects when it can. A call that
    gets no connection within `acquire_timeout_seconds` raises UnavailableError. `behind_pooler`
    says that the URL leads to a pooler in transaction mode.
    """
    pool: Pool = AsyncConnectionPool(
        conninfo(database_url, "" if behind_pooler else session_settings.OPTIONS),
        connection_class=PrimaryConnection,
        kwargs={"autocommit": True},
        configure=session_settings.warn_if_missing if behind_pooler else None,
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


class connected:  # noqa: N801 - used like a function
    """A connection of the pool. Raises UnavailableError if the database does not answer.

    The errors in _UNAVAILABLE that the block raises become UnavailableError too.

    Written without generators and without `pool.connection()`, which took a quarter of the
    processor time of a short statement.
    """

    __slots__ = ("_connection", "_hang_up", "_pool")

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def __aenter__(self) -> Connection:
        pool = self._pool
        try:
            while True:
                connection = await pool.getconn(deadline.bounded(pool.timeout))
                if not (connection.is_superseded or _has_ended(connection)):
                    break
                # The pool replaces a closed connection.
                await _close(pool, connection)
        except _UNAVAILABLE as error:
            raise UnavailableError(str(error)) from error
        self._connection = connection
        self._hang_up = hang_up_after(connection, deadline.bounded(ANSWER_TIMEOUT_SECONDS))
        return connection

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: object
    ) -> None:
        try:
            if isinstance(error, asyncio.CancelledError):
                # In psycopg 3.3 a cancelled connection may stay in pipeline mode, but the pool
                # treats it as idle. Later writes on it would be answered without being committed.
                await _close(self._pool, self._connection)
            else:
                # Sessions commit each statement, unless a block `connection.transaction()` does.
                # The pool rolls back what is open, and replaces a broken connection.
                await self._pool.putconn(self._connection)
        finally:
            self._hang_up.cancel()
        if isinstance(error, _UNAVAILABLE):
            raise UnavailableError(str(error)) from error


async def _close(pool: Pool, connection: Connection) -> None:
    """Closes the connection and gives it back to the pool, even if the caller is cancelled."""
    try:
        await connection.close()
    finally:
        await pool.putconn(connection)


def _has_ended(connection: Connection) -> bool:
    """Whether the server has ended the session.

    An idle connection is readable only if the server has closed it. This check is one system call;
    the pool's own check takes a round trip for each call, and a second for each dead connection.
    """
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))
