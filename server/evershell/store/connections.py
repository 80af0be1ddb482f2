"""Connects to the PostgreSQL server that accepts writes, with one connection, a pool or a pooler.

A URL may name several hosts: a primary and its standbys. libpq passes over servers that accept no
writes. A standby that is promoted begins a new timeline. If several servers accept writes, the one
with the highest timeline is the primary, and the others are former primaries that came back. They
are not used.
"""

import asyncio
import os
import select
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from typing import Any, ClassVar, NamedTuple, Self, TypeAlias
from weakref import WeakValueDictionary

import psycopg
import structlog
from psycopg import AsyncConnection
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow, namedtuple_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from evershell.core import deadline, errors
from evershell.core.caller import calling_org
from evershell.core.errors import OperatorError, UnavailableError
from evershell.store import session_settings
from evershell.store.statements import statements

# How long to wait for the other servers once one that accepts writes has answered.
_OTHERS_SECONDS = 0.5
_ANSWER_SECONDS = 1.5
# PgBouncer's answer to session settings.
_REFUSED_SETTING = "unsupported startup parameter"
SQL = statements("connections")

# The name of the sessions of commands. They end a little later than their command, so a fence must
# not count them as sessions of a worker or a controller.
COMMAND_NAME = "evershell command"
# The name of the session in which a worker listens, by which the controller finds the workers.
WORKER_NAME = "evershell worker"
# The name of the sessions in which a worker serves calls.
CALLS_NAME = "evershell calls"
_COMMAND_CONNECT_SECONDS = 10
_POOLER_RETRY_SECONDS = 0.25
# How long one attempt to connect may take.
_CONNECT_TIMEOUT_SECONDS = 5
# How long sent data may stay unacknowledged before the kernel closes the connection.
_TCP_USER_TIMEOUT_MILLISECONDS = 5_000
# How long a call waits for a connection, and then for the server's answers. It waits less if its
# deadline is earlier.
ACQUIRE_TIMEOUT_SECONDS = 1.5
ANSWER_TIMEOUT_SECONDS = 3.0
# Both limits for lists.
_LIST_WAIT_SECONDS = 0.5
# The longest pause after a list, so that the next statement of the same call is not refused.
_LIST_PAUSE_SECONDS = 0.05
LIST_TIMEOUT_SECONDS = 1.0
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

# The host and the port of each server.
_Servers: TypeAlias = tuple[tuple[str, str], ...]

_log = structlog.get_logger()


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


@contextmanager
def answered_within(connection: AsyncConnection[Any], limit_seconds: float) -> Iterator[None]:
    """Shuts the connection down if the block takes longer than the limit.

    A wait for the server within the block then raises psycopg.OperationalError. A frozen server
    does not enforce its own limits, and cancelling the wait does not help, because psycopg then
    sends a cancel request and waits for the server's answer.
    """
    timer = hang_up_after(connection, limit_seconds)
    try:
        yield
    finally:
        timer.cancel()


def hang_up_after(connection: AsyncConnection[Any], seconds: float) -> asyncio.TimerHandle:
    """Shuts the connection down after this time, unless the timer is cancelled before."""
    return asyncio.get_running_loop().call_later(seconds, _hang_up, connection)


def _hang_up(connection: AsyncConnection[Any]) -> None:
    # A duplicate, because psycopg closes its own descriptor.
    with suppress(psycopg.Error, OSError), socket.socket(fileno=os.dup(connection.fileno())) as end:
        end.shutdown(socket.SHUT_RDWR)


class PoolerError(OperatorError, psycopg.OperationalError):
    """The URL leads to a pooler where a session is needed."""

    def __init__(self) -> None:
        super().__init__(
            "The URL leads to a pooler. Set DATABASE_SESSION_URL to the URL of the same database "
            "at PostgreSQL itself."
        )


class PrimaryConnection(AsyncConnection[Any]):
    """A connection to the primary among the hosts of its URL."""

    # The highest timeline that this process has seen among the servers of each URL.
    _highest: ClassVar[dict[_Servers, int]] = {}
    # Empty if the URL names one host, which is then the primary.
    _servers: _Servers = ()
    _timeline = 0

    @classmethod
    async def connect(cls, conninfo: str = "", **kwargs: Any) -> Self:
        """Raises psycopg.OperationalError, for example if no server is the primary."""
        servers = _servers_of(conninfo)
        if len(servers) == 1:
            return await super().connect(conninfo, **kwargs)
        attempts = [
            asyncio.create_task(cls._open(servers, _only(conninfo, *each), kwargs))
            for each in servers
        ]
        opened: list[Self] = []
        primary: Self | None = None
        try:
            pending = set(attempts)
            while pending:
                limit = _OTHERS_SECONDS if opened else None
                done, pending = await asyncio.wait(
                    pending, timeout=limit, return_when=asyncio.FIRST_COMPLETED
                )
                if not done:
                    break
                opened += [each.result() for each in done if each.exception() is None]
            if not opened:
                raise attempts[0].exception() or AssertionError
            newest = max(opened, key=lambda connection: connection._timeline)
            cls._highest[servers] = max(newest._timeline, cls._highest.get(servers, 0))
            if newest.is_superseded:
                raise psycopg.OperationalError("only a former primary accepts writes")
            primary = newest
            return primary
        finally:
            for attempt in attempts:
                attempt.cancel()
            for connection in await asyncio.gather(*attempts, return_exceptions=True):
                if isinstance(connection, cls) and connection is not primary:
                    await connection.close()

    @classmethod
    async def _open(cls, servers: _Servers, conninfo: str, kwargs: dict[str, Any]) -> Self:
        connection = await super().connect(conninfo, **kwargs)
        try:
            with answered_within(connection, _ANSWER_SECONDS):
                row = await (await connection.execute(SQL.timeline)).fetchone()
            assert row is not None
            connection._servers, connection._timeline = servers, int(row[0], 16)
        except BaseException:
            await connection.close()
            raise
        return connection

    @property
    def is_superseded(self) -> bool:
        """Whether another server was promoted since, as far as this process knows."""
        return self._timeline < self._highest.get(self._servers, 0)


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
        """Leaves a quarter of the connections for cancellations that wait for no lock."""
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
        # psycopg has no setting for the order. It takes the first connection, and appends a
        # connection that is given back. It also closes the first one if there are too many.
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

    An organization may hold a part of the places, and its other lists wait behind these. So a list
    waits for a few lists of each other organization, however many those have. A list that waits
    holds no connection. It waits less long than other calls, because a repeat is harmless.

    After a list, its places stay taken for as long as the list took, up to a limit. So many short
    lists leave the database to cancellations for about half of the time.
    """

    answer_seconds = LIST_TIMEOUT_SECONDS

    def __init__(self, pool: "Connections", size: int, timeout: float) -> None:
        super().__init__(pool, size, timeout)
        self._used = 0
        # An organization that reads no list has no entry.
        self._of_orgs: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        # For each connection, since when it is used, and what frees its places.
        self._taken: dict[Connection, tuple[float, ExitStack]] = {}

    async def getconn(self, timeout: float) -> Connection:
        """Raises Failure rate_limited too, if all connections of the share stay used."""
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout
        with ExitStack() as places:
            try:
                async with asyncio.timeout(min(timeout, _LIST_WAIT_SECONDS)):
                    for each in (self._places_of(calling_org.get()), self._free):
                        await each.acquire()
                        places.callback(each.release)
            except TimeoutError as error:
                if self._used < self.size:
                    # The places are taken by calls that are themselves waiting for a connection.
                    raise PoolTimeout(_ALL_USED) from error
                raise errors.rate_limited("Too many lists are being read.", 1) from error
            connection = await self._pool.getconn(max(0.0, until - loop.time()))
            self._used += 1
            self._taken[connection] = (loop.time(), places.pop_all())
        return connection

    async def putconn(self, connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        taken_at, places = self._taken.pop(connection)
        try:
            await self._pool.putconn(connection)
        finally:
            pause_seconds = min(loop.time() - taken_at, _LIST_PAUSE_SECONDS)
            loop.call_later(pause_seconds, self._free_places, places)

    def _free_places(self, places: ExitStack) -> None:
        self._used -= 1
        places.close()

    def _places_of(self, org_id: str) -> asyncio.Semaphore:
        places = self._of_orgs.get(org_id)
        if places is None:
            places = self._of_orgs[org_id] = asyncio.Semaphore(max(1, self.size // 2))
        return places


Connections: TypeAlias = Pool | Share


def _refuse_pooler(connection: psycopg.BaseConnection[Any], row: TupleRow | None) -> None:
    """Raises PoolerError if another session than the connection's own has answered.

    `row` is the result of `session_pid`.
    """
    if row != (connection.info.backend_pid,):
        raise PoolerError


async def connect_to_session(conninfo: str) -> PrimaryConnection:
    """A connection with its own session, for LISTEN and for advisory locks.

    Raises psycopg.OperationalError; a PoolerError if a pooler answers, because it may run each
    transaction in another session.
    """
    try:
        connection = await PrimaryConnection.connect(conninfo, autocommit=True)
    except psycopg.OperationalError as error:
        if _REFUSED_SETTING in str(error):
            raise PoolerError from error
        raise
    try:
        with answered_within(connection, _ANSWER_SECONDS):
            row = await (await connection.execute(SQL.session_pid)).fetchone()
        _refuse_pooler(connection, row)
    except BaseException:
        await connection.close()
        raise
    return connection


def _has_standbys(conninfo: str) -> bool:
    """Whether the URL names several hosts. Raises psycopg.OperationalError."""
    return len(_servers_of(conninfo)) > 1


async def primary_of(conninfo: str) -> str:
    """The connection string of only the primary. Raises psycopg.OperationalError."""
    async with await PrimaryConnection.connect(conninfo, autocommit=True) as connection:
        return make_conninfo(conninfo, host=connection.info.host, port=connection.info.port)


def _servers_of(conninfo: str) -> _Servers:
    parameters = conninfo_to_dict(conninfo)
    hosts = str(parameters.get("host") or "").split(",")
    ports = str(parameters.get("port") or "").split(",")
    if len(ports) == 1:
        ports *= len(hosts)
    if len(ports) != len(hosts):
        # libpq refuses such a URL too.
        raise psycopg.OperationalError(f"the URL has {len(ports)} ports for {len(hosts)} hosts")
    return tuple(zip(hosts, ports, strict=True))


def _only(conninfo: str, host: str, port: str) -> str:
    """The connection string of one server, which is used only if it accepts writes."""
    return make_conninfo(conninfo, host=host, port=port, target_session_attrs="read-write")


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
        configure=_warn_of_missing_settings if behind_pooler else None,
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


async def _warn_of_missing_settings(connection: AsyncConnection[Any]) -> None:
    """Logs the settings that are not in force in the session behind a pooler.

    The session may have started before the defaults were stored.
    """
    names = list(session_settings.SETTINGS)
    with answered_within(connection, _ANSWER_SECONDS):
        cursor = await connection.execute(SQL.settings_in_force, {"names": names})
        in_force = dict(await cursor.fetchall())
    missing = {
        name: in_force[name] for name in names if in_force[name] != session_settings.SETTINGS[name]
    }
    if missing:
        _log.error(
            "session_settings_missing",
            found=missing,
            remedy="run `evershell migrate`, then RECONNECT in the console of the pooler",
        )


@asynccontextmanager
async def pooler_watched(database_url: str) -> AsyncIterator["asyncio.Future[None]"]:
    """Waits until the pooler takes a connection. The future is done when the pooler has closed it.

    The connection is used for nothing else, so that a busy pooler does not seem to have ended.
    """
    connection = await _connected_to_pooler(conninfo(database_url, ""))
    async with connection:
        loop, descriptor = asyncio.get_running_loop(), connection.fileno()
        closed: asyncio.Future[None] = loop.create_future()

        def end() -> None:
            loop.remove_reader(descriptor)
            closed.set_result(None)

        # The pooler sends nothing on an idle connection, so it is readable only if it was closed.
        loop.add_reader(descriptor, end)
        try:
            yield closed
        finally:
            loop.remove_reader(descriptor)


async def _connected_to_pooler(pooler: str) -> PrimaryConnection:
    while True:
        try:
            return await PrimaryConnection.connect(pooler, autocommit=True)
        except psycopg.OperationalError as error:
            _log.warning("pooler_unreachable", error=str(error).strip())
            await asyncio.sleep(_POOLER_RETRY_SECONDS)


def primary_conninfo(database_url: str) -> str:
    """The connection string of the primary, for the session of a command. Blocks.

    Raises psycopg.Error, which is a PoolerError if the URL leads to a pooler.
    """
    server = make_conninfo(database_url, application_name=COMMAND_NAME)
    if _has_standbys(server):
        server = asyncio.run(primary_of(server))
    # A pooler would refuse the session options, so they are added only after the check.
    with psycopg.connect(
        server, autocommit=True, connect_timeout=_COMMAND_CONNECT_SECONDS
    ) as connection:
        _refuse_pooler(connection, connection.execute(SQL.session_pid).fetchone())
    return conninfo(server, session_settings.UNLIMITED)


def connect_for_command(database_url: str) -> psycopg.Connection[Any]:
    """A session of a command, which commits each statement. Raises like `primary_conninfo`."""
    return psycopg.connect(primary_conninfo(database_url), autocommit=True)


def problem_of(error: psycopg.Error) -> str:
    """The text of the error for an operator. psycopg's text for an invalid URL has the password."""
    if isinstance(error, psycopg.ProgrammingError) and not error.sqlstate:
        return "DATABASE_URL is not a valid URL of PostgreSQL"
    return str(error).strip()
