"""Connects to the server that accepts writes.

A URL may name several hosts: a primary and its standbys. A standby that is promoted begins a new
timeline. If several servers accept writes, the one with the highest timeline is the primary, and
the others are former primaries that came back. They are not used.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, ClassVar, Self, TypeAlias

import psycopg
from psycopg import AsyncConnection
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow

from evershell.store.hang_up import answered_within

# How long the other servers may take to answer after the first one that accepts writes.
_OTHERS_SECONDS = 0.5
_ANSWER_SECONDS = 1.5
# A pooler tells its clients another process id than that of the session that answers.
SESSION_PID = "SELECT pg_backend_pid()"
# The answer of PgBouncer to the settings of a session.
_REFUSED_SETTING = "unsupported startup parameter"
# The first 8 of the 24 hexadecimal digits of a WAL file are the timeline.
_TIMELINE = "SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)"

# The host and the port of each server.
_Servers: TypeAlias = tuple[tuple[str, str], ...]


class PoolerError(psycopg.OperationalError):
    """The URL leads to a pooler where a session is needed. The message is for the operator."""

    def __init__(self) -> None:
        super().__init__(
            "The URL leads to a pooler. Set DATABASE_SESSION_URL to the URL of the same database "
            "at PostgreSQL itself."
        )


class PrimaryConnection(AsyncConnection[TupleRow]):
    """A connection to the primary among the hosts of its URL."""

    # The highest timeline that this process has seen of the servers of each URL.
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
        opening = [
            asyncio.create_task(cls._open(servers, _only(conninfo, *each), kwargs))
            for each in servers
        ]
        try:
            await _until_decided(opening)
            opened = [task.result() for task in opening if _has_succeeded(task)]
        except BaseException:
            await _close_all(opening)
            raise
        if not opened:
            raise opening[0].exception() or AssertionError
        primary = max(opened, key=lambda connection: connection._timeline)
        await _close_all(opening, but=primary)
        cls._highest[servers] = max(primary._timeline, cls._highest.get(servers, 0))
        if primary.is_superseded:
            await primary.close()
            raise psycopg.OperationalError("only a former primary accepts writes")
        return primary

    @classmethod
    async def _open(cls, servers: _Servers, conninfo: str, kwargs: dict[str, Any]) -> Self:
        connection = await super().connect(conninfo, **kwargs)
        try:
            with answered_within(connection, _ANSWER_SECONDS):
                row = await (await connection.execute(_TIMELINE)).fetchone()
            assert row is not None
            connection._servers, connection._timeline = servers, int(row[0], 16)
        except BaseException:
            await connection.close()
            raise
        return connection

    @property
    def is_superseded(self) -> bool:
        """Whether this process has learned since that another server was promoted."""
        return self._timeline < self._highest.get(self._servers, 0)


def refuse_pooler(connection: psycopg.BaseConnection[Any], row: TupleRow | None) -> None:
    """Raises PoolerError unless the row of SESSION_PID is of the session that has answered."""
    if row != (connection.info.backend_pid,):
        raise PoolerError


async def connect_to_session(conninfo: str) -> PrimaryConnection:
    """A connection with a session of its own, for LISTEN and for advisory locks.

    Raises psycopg.OperationalError. It is a PoolerError if a pooler answers, which may run each
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
            row = await (await connection.execute(SESSION_PID)).fetchone()
        refuse_pooler(connection, row)
    except BaseException:
        await connection.close()
        raise
    return connection


def has_standbys(conninfo: str) -> bool:
    """Whether the URL names several hosts. Raises psycopg.OperationalError."""
    return len(_servers_of(conninfo)) > 1


async def primary_of(conninfo: str) -> str:
    """The connection string of the primary alone. Raises psycopg.OperationalError."""
    async with await PrimaryConnection.connect(conninfo, autocommit=True) as connection:
        return make_conninfo(conninfo, host=connection.info.host, port=connection.info.port)


def _servers_of(conninfo: str) -> _Servers:
    parameters = conninfo_to_dict(conninfo)
    hosts = str(parameters.get("host") or "").split(",")
    ports = str(parameters.get("port") or "").split(",")
    if len(ports) == 1:
        ports *= len(hosts)
    if len(ports) != len(hosts):
        # libpq refuses them too.
        raise psycopg.OperationalError(f"the URL has {len(ports)} ports for {len(hosts)} hosts")
    return tuple(zip(hosts, ports, strict=True))


def _only(conninfo: str, host: str, port: str) -> str:
    """The connection string of one server, which is used only if it accepts writes."""
    return make_conninfo(conninfo, host=host, port=port, target_session_attrs="read-write")


async def _until_decided(opening: "Sequence[asyncio.Task[Any]]") -> None:
    """Returns when all servers have answered, or some time after the first that accepts writes."""
    pending = set(opening)
    while pending and not any(map(_has_succeeded, opening)):
        _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
    if pending:
        await asyncio.wait(pending, timeout=_OTHERS_SECONDS)


def _has_succeeded(task: "asyncio.Task[Any]") -> bool:
    return task.done() and not task.cancelled() and task.exception() is None


async def _close_all(
    opening: "Sequence[asyncio.Task[PrimaryConnection]]", but: PrimaryConnection | None = None
) -> None:
    for task in opening:
        task.cancel()
    for connection in await asyncio.gather(*opening, return_exceptions=True):
        if isinstance(connection, PrimaryConnection) and connection is not but:
            await connection.close()
