"""A pool of connections that is divided into shares, and how statements use it."""

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

# How long a call waits for a connection, unless its deadline is earlier.
ACQUIRE_TIMEOUT_SECONDS = 1.5
# How long a call then waits for the server's answers, unless its deadline is earlier.
ANSWER_TIMEOUT_SECONDS = 3.0
# How long a call that lists waits for a place in the share for lists (see Lists).
_LIST_WAIT_SECONDS = 0.5
# How long a call that lists waits for the server's answers, unless its deadline is earlier.
LIST_TIMEOUT_SECONDS = 1.0
# The longest time for which the place of a list stays taken after the list has been read. It is
# short, so that the next statement of the same call is not refused.
_LIST_PAUSE_SECONDS = 0.05
# How long the pool tries to reconnect. After that, the next request for a connection starts a new
# series of attempts, again with the shortest backoff.
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
    # The part of `locks` for cancel_tasks and cancel_tree.
    bulk: int
    # Calls that use neither the pool itself nor `locks`.
    others: int
    # The part of `others` for lists.
    lists: int
    # The part of `others` for submissions into trees, which wait for tree locks.
    trees: int

    @classmethod
    def of(cls, connections: int) -> Self:
        """The sizes for a pool of this many connections.

        A quarter of the connections belongs to no share. It is left for calls that use the pool
        itself, such as cancellations that do not wait for a lock.
        """
        part = max(1, connections // 4)
        lists = max(1, connections // 8)
        return cls(part, max(1, part // 2), max(1, connections - 2 * part), lists, part)


class Pool(AsyncConnectionPool[Connection]):
    """A pool with shares. It always hands out the connection that was used last.

    The caches of PostgreSQL's process and of the processor then still have what a statement needs.
    After a burst, psycopg's own order would use each connection of the burst in turn.

    Cancellations that do not wait for a lock, reads of one task or of a deleted workspace, holds
    and credentials use the pool itself. All other calls of callers use a share. If the pool has at
    least four connections, the shares together are smaller than the pool.
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
        # the first one if there are too many. No setting changes this order.
        self._pool.rotate(1)
        return await super()._get_ready_connection(timeout)


class Share:
    """Some of the connections of a pool. A share is used like a pool."""

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
    """The share for lists. No organization can take all of its places.

    The lists of one organization take at most half of the places, but at least one. Further lists
    of this organization first wait for one of these places, and do not yet compete with the lists
    of other organizations. A list that waits has no connection. It waits for a shorter time than
    other calls, because its caller can safely repeat it.

    After a list has been read, its place stays taken for as long as the list took, up to a limit.
    Therefore short lists, however many, use the database for at most about half of the time.
    """

    answer_seconds = LIST_TIMEOUT_SECONDS

    def __init__(self, pool: "Connections", size: int, timeout: float) -> None:
        super().__init__(pool, size, timeout)
        # The number of calls that have a place and wait for a connection.
        self._waiting = 0
        # The places of each organization that is reading lists.
        self._of_orgs: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        # For each connection in use: when a list took it, and what frees the places of the list.
        self._taken: dict[Connection, tuple[float, ExitStack]] = {}

    async def getconn(self, timeout: float) -> Connection:
        """Also raises Failure rate_limited if the organization gets no place in time."""
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout
        with ExitStack() as places:
            place_until = loop.time() + min(timeout, _LIST_WAIT_SECONDS)
            try:
                for each in (self._places_of(calling_org.get()), self._free):
                    await _acquire(each, place_until)
                    places.callback(each.release)
            except TimeoutError as error:
                if self._waiting:
                    # Lists have places, but get no connections: other calls use all connections,
                    # or the database cannot be reached.
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


async def _acquire(places: asyncio.Semaphore, until: float) -> None:
    """Raises TimeoutError if no place is free at `until`, by the clock of the event loop."""
    try:
        async with asyncio.timeout_at(until):
            await places.acquire()
    except TimeoutError:
        # After a pause of the process, the timeout and the release of a place can come in the same
        # turn of the event loop.
        if places.locked():
            raise
        await places.acquire()


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
    """A pool of connections, closed when the context is left. Rows are named tuples.

    The pool opens even if the database cannot be reached, and connects once it can. A call that
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

    Also raises UnavailableError in place of an error of the block that is listed in _UNAVAILABLE.

    Uses neither a generator nor `pool.connection()`. Together they took a quarter of the processor
    time of a short statement.
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
                # treats it as idle. Later writes on it would seem to succeed, but would not be
                # committed.
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

    If `prepare` is False, PostgreSQL plans the query for exactly these parameters.
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
    The pool's own check would add a round trip to each call, and wait for about 1 s after each dead
    connection.
    """
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))
