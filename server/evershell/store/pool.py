"""A pool of connections with shares, and how statements use it."""

import asyncio
import select
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from typing import Any, NamedTuple, Self, TypeAlias
from weakref import WeakValueDictionary

import psycopg
from psycopg.rows import namedtuple_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from evershell.core import deadline, errors
from evershell.core.caller import calling_org
from evershell.core.errors import UnavailableError
from evershell.store import session_settings
from evershell.store.connections import (
    PrimaryConnection,
    conninfo,
    hang_up_after,
    warn_of_missing_settings,
)

# How long a call waits for a connection, and then for the server's answers. It waits less if its
# deadline is earlier.
ACQUIRE_TIMEOUT_SECONDS = 1.5
ANSWER_TIMEOUT_SECONDS = 3.0
# The same two limits for lists.
_LIST_WAIT_SECONDS = 0.5
LIST_TIMEOUT_SECONDS = 1.0
# The longest time for which a place stays taken after a list. It is short, so that the next
# statement of the same call is not refused.
_LIST_PAUSE_SECONDS = 0.05
# How long the pool retries to connect. The next request for a connection starts a new series of
# attempts, with the shortest backoff.
_RECONNECT_TIMEOUT_SECONDS = 2.0
_ALL_USED = "all connections of the share are used"
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
Connection: TypeAlias = PrimaryConnection


class Sizes(NamedTuple):
    """The number of connections of each share of a pool."""

    # Cancellations that wait for a lock.
    locks: int
    # The part of `locks` for cancellations of many tasks.
    bulk: int
    # Everything except cancellations.
    others: int
    # The parts of `others` for lists, and for submissions into trees, which wait for tree locks.
    lists: int
    trees: int

    @classmethod
    def of(cls, connections: int) -> Self:
        """The sizes for a pool. A quarter stays for cancellations that wait for no lock."""
        part = max(1, connections // 4)
        lists = max(1, connections // 8)
        return cls(part, max(1, part // 2), max(1, connections - 2 * part), lists, part)


class Pool(AsyncConnectionPool[Connection]):
    """A pool with shares that hands out the most recently used connection.

    The caches of PostgreSQL's process and of the processor then still have what a statement needs.
    After a burst, psycopg's own order would use each connection of the burst in turn.

    Cancellations, reads of one task, holds and credentials use the pool itself. Everything else
    that callers do uses a share. From four connections on, the shares together are smaller than the
    pool.
    """

    # How long a call waits for the server's answers.
    answer_seconds = ANSWER_TIMEOUT_SECONDS

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        sizes = Sizes.of(self.max_size)
        self.locks = Share(self, sizes.locks, ANSWER_TIMEOUT_SECONDS)
        self.bulk = Share(self.locks, sizes.bulk, ANSWER_TIMEOUT_SECONDS)
        self.others = Share(self, sizes.others, self.timeout)
        self.trees = Share(self.others, sizes.trees, ANSWER_TIMEOUT_SECONDS)
        self.lists = Lists(self.others, sizes.lists, self.timeout)

    async def _get_ready_connection(self, timeout: float | None) -> Connection | None:
        # psycopg takes the first connection, appends a connection that is given back, and closes
        # the first one if there are too many. It has no setting for this order.
        self._pool.rotate(1)
        return await super()._get_ready_connection(timeout)


class Share:
    """A part of the connections of a pool. Used like the pool."""

    answer_seconds = ANSWER_TIMEOUT_SECONDS

    def __init__(self, pool: "Connections", size: int, timeout: float) -> None:
        """`timeout` is how long a call waits for a connection, in seconds."""
        self._pool = pool
        self.size = size
        self.timeout = timeout
        self._free = asyncio.Semaphore(size)

    async def getconn(self, timeout: float) -> Connection:
        """A connection. Raises psycopg_pool.PoolTimeout if there is none within the timeout."""
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout
        try:
            async with asyncio.timeout(timeout):
                await self._free.acquire()
        except TimeoutError as error:
            raise PoolTimeout(_ALL_USED) from error
        try:
            return await self._pool.getconn(max(0.0, until - loop.time()))
        except BaseException:
            self._free.release()
            raise

    async def putconn(self, connection: Connection) -> None:
        """Gives the connection back."""
        try:
            await self._pool.putconn(connection)
        finally:
            self._free.release()


class Lists(Share):
    """The share of lists, in which organizations take turns.

    An organization holds at most half of the places, and at least one. Its other lists wait until
    it frees a place. So a list waits for at most that many lists of each other organization. A list
    that waits holds no connection. It waits for a shorter time than other calls, because a repeat
    is harmless.

    After a list, its place stays taken for as long as the list took, up to a limit. Therefore short
    lists, however many, use the database for at most about half of the time.
    """

    answer_seconds = LIST_TIMEOUT_SECONDS

    def __init__(self, pool: "Connections", size: int, timeout: float) -> None:
        super().__init__(pool, size, timeout)
        # The calls that have a place and wait for a connection.
        self._waiting = 0
        # An organization that reads no list has no entry.
        self._of_orgs: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        # For each connection in use: when it was taken, and what frees its places.
        self._taken: dict[Connection, tuple[float, ExitStack]] = {}

    async def getconn(self, timeout: float) -> Connection:
        """Also raises Failure rate_limited if lists have no place left for this organization."""
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout
        with ExitStack() as places:
            try:
                async with asyncio.timeout(min(timeout, _LIST_WAIT_SECONDS)):
                    for each in (self._places_of(calling_org.get()), self._free):
                        await each.acquire()
                        places.callback(each.release)
            except TimeoutError as error:
                if self._waiting:
                    # Other calls use the connections, or the database cannot be reached.
                    raise PoolTimeout(_ALL_USED) from error
                raise errors.rate_limited("Too many lists are being read.", 1) from error
            self._waiting += 1
            try:
                connection = await self._pool.getconn(max(0.0, until - loop.time()))
            finally:
                self._waiting -= 1
            self._taken[connection] = (loop.time(), places.pop_all())
        return connection

    async def putconn(self, connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        taken_at, places = self._taken.pop(connection)
        try:
            await self._pool.putconn(connection)
        finally:
            pause_seconds = min(loop.time() - taken_at, _LIST_PAUSE_SECONDS)
            loop.call_later(pause_seconds, places.close)

    def _places_of(self, org_id: str) -> asyncio.Semaphore:
        places = self._of_orgs.get(org_id)
        if places is None:
            places = self._of_orgs[org_id] = asyncio.Semaphore(max(1, self.size // 2))
        return places


Connections: TypeAlias = Pool | Share


@asynccontextmanager
async def open_pool(
    database_url: str,
    *,
    min_size: int = 2,
    max_size: int = 10,
    acquire_timeout_seconds: float = ACQUIRE_TIMEOUT_SECONDS,
    behind_pooler: bool = False,
) -> AsyncIterator[Pool]:
    """A pool of connections, closed when the context is left. Their rows are named tuples.

    The pool opens even if the database cannot be reached, and connects when it can. A call that
    gets no connection within `acquire_timeout_seconds` raises UnavailableError. `behind_pooler`
    says that the URL leads to a pooler in transaction mode.
    """
    pool = Pool(
        conninfo(database_url, "" if behind_pooler else session_settings.OPTIONS),
        connection_class=PrimaryConnection,
        kwargs={"autocommit": True, "row_factory": namedtuple_row},
        configure=warn_of_missing_settings if behind_pooler else None,
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

    If the block raises an error in _UNAVAILABLE, it becomes an UnavailableError too.

    Uses neither a generator nor `pool.connection()`, which took a quarter of the processor time of
    a short statement.
    """

    __slots__ = ("_connection", "_hang_up", "_pool")

    def __init__(self, pool: Connections) -> None:
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
        self._hang_up = hang_up_after(connection, deadline.bounded(pool.answer_seconds))
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
                # Each statement is committed by itself, except in a `connection.transaction()`. The
                # pool rolls back an open transaction, and replaces a broken connection.
                await self._pool.putconn(self._connection)
        finally:
            self._hang_up.cancel()
        if isinstance(error, _UNAVAILABLE):
            raise UnavailableError(str(error)) from error


async def fetch_one(pool: Connections, query: str, **parameters: Any) -> Any:
    """The first row; None if there is none. Raises UnavailableError, like `connected`."""
    async with connected(pool) as connection:
        cursor = await connection.execute(query, parameters, prepare=True, binary=True)
        return await cursor.fetchone()


async def fetch_all(
    pool: Connections, query: str, *, prepare: bool = True, **parameters: Any
) -> Sequence[Any]:
    """All rows. Raises UnavailableError, like `connected`.

    Without `prepare`, the query is planned for these parameters.
    """
    async with connected(pool) as connection:
        cursor = await connection.execute(query, parameters, prepare=prepare, binary=True)
        return await cursor.fetchall()


async def _close(pool: Connections, connection: Connection) -> None:
    """Closes the connection and gives it back to the pool, even if the caller is cancelled."""
    try:
        await connection.close()
    finally:
        await pool.putconn(connection)


def _has_ended(connection: Connection) -> bool:
    """Whether the server has ended the session.

    An idle connection is readable only if the server has closed it. This check is one system call.
    The pool's own check takes a round trip for each call, and a second for each dead connection.
    """
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))
