"""Connects to the PostgreSQL server that accepts writes, or to a pooler.

A URL may name several hosts: a primary and its standbys. libpq skips servers that do not accept
writes. A standby that is promoted begins a new timeline. If several servers accept writes, the one
with the highest timeline is the primary. The others are former primaries that have come back, and
are not used.
"""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, ClassVar, Self, TypeAlias

import psycopg
import structlog
from psycopg import AsyncConnection
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow

from evershell.core.errors import OperatorError
from evershell.store import session_settings
from evershell.store.statements import statements

# How long to wait for the other hosts of the URL after a server that accepts writes has answered.
# That server may be a former primary.
_OTHERS_SECONDS = 0.5
# How long to wait for the server's answer to the checks of a new connection, and to a statement
# outside the pool.
ANSWER_SECONDS = 1.5
# A part of the error with which PgBouncer refuses session settings.
_REFUSED_SETTING = "unsupported startup parameter"
SQL = statements("connections")

# The name of the sessions of commands. Such a session ends a little later than its command, so
# fence.py must be able to tell it from the sessions of workers and controllers.
COMMAND_NAME = "evershell command"
# The name of the session in which a worker listens for notifications. The controller finds the
# workers by this name.
WORKER_NAME = "evershell worker"
# The name of the sessions in which a worker serves calls.
CALLS_NAME = "evershell calls"
# How long one attempt to connect may take.
_CONNECT_TIMEOUT_SECONDS = 5
# How long sent data may stay unacknowledged before the kernel closes the connection.
_TCP_USER_TIMEOUT_MILLISECONDS = 5_000


# The host and the port of each server.
_Servers: TypeAlias = tuple[tuple[str, str], ...]

_log = structlog.get_logger()


def conninfo(database_url: str, session_options: str = session_settings.OPTIONS) -> str:
    """The connection string for the database, with these options for the session.

    Network settings in the URL take precedence.
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
    """Shuts the connection down after this time, unless the returned timer is cancelled."""
    return asyncio.get_running_loop().call_later(seconds, _hang_up, connection)


def _hang_up(connection: AsyncConnection[Any]) -> None:
    # Uses a duplicate of the descriptor, because psycopg itself closes the original.
    with suppress(psycopg.Error, OSError), socket.socket(fileno=os.dup(connection.fileno())) as end:
        end.shutdown(socket.SHUT_RDWR)


class PoolerError(OperatorError, psycopg.OperationalError):
    """The URL leads to a pooler, but a session of PostgreSQL itself is needed."""

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
        """Connects to the primary. Raises psycopg.OperationalError if there is none."""
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
            with answered_within(connection, ANSWER_SECONDS):
                row = await (await connection.execute(SQL.timeline)).fetchone()
            assert row is not None
            connection._servers, connection._timeline = servers, int(row[0], 16)
        except BaseException:
            await connection.close()
            raise
        return connection

    @property
    def is_superseded(self) -> bool:
        """Whether this process knows of a server that was promoted later than this one."""
        return self._timeline < self._highest.get(self._servers, 0)


def _refuse_pooler(connection: psycopg.BaseConnection[Any], row: TupleRow | None) -> None:
    """Raises PoolerError if the session that answered is not the session of the connection.

    `row` is the result of `session_pid`.
    """
    if row != (connection.info.backend_pid,):
        raise PoolerError


async def connect_to_session(conninfo: str) -> PrimaryConnection:
    """A connection with its own session, for LISTEN and for advisory locks.

    Raises psycopg.OperationalError. Raises PoolerError if a pooler answers, because a pooler may
    run each transaction in another session.
    """
    try:
        connection = await PrimaryConnection.connect(conninfo, autocommit=True)
    except psycopg.OperationalError as error:
        if _REFUSED_SETTING in str(error):
            raise PoolerError from error
        raise
    try:
        with answered_within(connection, ANSWER_SECONDS):
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
    """The connection string that names only the primary. Raises psycopg.OperationalError."""
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


async def warn_of_missing_settings(connection: AsyncConnection[Any]) -> None:
    """Logs which settings are not in force in the session behind the pooler.

    The session may have started before the defaults were stored.
    """
    names = list(session_settings.SETTINGS)
    with answered_within(connection, ANSWER_SECONDS):
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
    """Connects to the pooler. Yields a future that is done once the connection is closed.

    Tries to connect until it succeeds. Sends nothing on the connection, so that a pooler that is
    only slow to answer does not seem to have ended.
    """
    connection = await _connected_to_pooler(conninfo(database_url, ""))
    async with connection:
        loop, descriptor = asyncio.get_running_loop(), connection.fileno()
        closed: asyncio.Future[None] = loop.create_future()

        def end() -> None:
            loop.remove_reader(descriptor)
            closed.set_result(None)

        # The pooler sends nothing on an idle connection. If it is readable, it has been closed.
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
            await asyncio.sleep(0.25)


def primary_conninfo(database_url: str) -> str:
    """The connection string of the primary, for the session of a command. Synchronous.

    Raises psycopg.Error, or PoolerError if the URL leads to a pooler.
    """
    server = make_conninfo(database_url, application_name=COMMAND_NAME)
    if _has_standbys(server):
        server = asyncio.run(primary_of(server))
    # A pooler would refuse the session options, so they are added only after the check.
    with psycopg.connect(server, autocommit=True, connect_timeout=10) as connection:
        _refuse_pooler(connection, connection.execute(SQL.session_pid).fetchone())
    return conninfo(server, session_settings.UNLIMITED)


def connect_for_command(database_url: str) -> psycopg.Connection[Any]:
    """A session for a command. Commits each statement. Raises like `primary_conninfo`."""
    return psycopg.connect(primary_conninfo(database_url), autocommit=True)


def problem_of(error: psycopg.Error) -> str:
    """The error as a text for an operator. Leaves out the URL, which may contain a password."""
    if isinstance(error, psycopg.ProgrammingError) and not error.sqlstate:
        return "DATABASE_URL is not a valid URL of PostgreSQL"
    return str(error).strip()
