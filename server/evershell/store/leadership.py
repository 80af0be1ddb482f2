"""Leader election among any number of processes, with an advisory lock of PostgreSQL."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import structlog
from psycopg import AsyncConnection

from evershell.store.connections import (
    PoolerError,
    PrimaryConnection,
    answered_within,
    connect_to_session,
    conninfo,
)
from evershell.store.statements import statements

# An arbitrary number, the same in every process that competes.
LEADER_LOCK_KEY = 0x6576_6C64
# If a leader is silent for 4 s, PostgreSQL ends its session, which releases the lock. The leader
# stops leading before that, after at most _CHECK_SECONDS plus _CHECK_TIMEOUT_SECONDS. A leader that
# was frozen for longer does nothing more, because it checks Term.is_current before each action.
_SESSION_OPTIONS = (
    "-c tcp_keepalives_idle=1 -c tcp_keepalives_interval=1 -c tcp_keepalives_count=3 "
    "-c tcp_user_timeout=4000 -c idle_session_timeout=4s -c statement_timeout=5s"
)
_POLL_SECONDS = 0.5
_CHECK_SECONDS = 0.5
_CHECK_TIMEOUT_SECONDS = 1.5
_TERM_SECONDS = 3.5

SQL = statements("leadership")

_log = structlog.get_logger()


class Term:
    """A period in which this process leads."""

    def __init__(self) -> None:
        # Set when this process may have lost the leadership, which is at most 2 s after the
        # database has stopped answering.
        self.lost = asyncio.Event()
        self._ends_at = _now() + _TERM_SECONDS

    def extend(self, asked_at: float) -> None:
        """Extends the term, because PostgreSQL has answered a query that was sent at `asked_at`."""
        self._ends_at = asked_at + _TERM_SECONDS

    def is_current(self) -> bool:
        """Whether it is certain that this process leads."""
        return _now() < self._ends_at and not self.lost.is_set()


class Leadership:
    """Elects one leader at a time."""

    def __init__(self, database_url: str, *, key: int = LEADER_LOCK_KEY) -> None:
        """Processes with the same `key` on the same database compete."""
        self._conninfo = conninfo(database_url, _SESSION_OPTIONS)
        self._key = key

    @asynccontextmanager
    async def acquired(self) -> AsyncIterator[Term]:
        """Waits until this process leads. Leaving the context gives up the leadership.

        Keeps waiting during outages of the database. When the term is lost, the caller must stop
        leading at once and leave the context. Another process takes over within 5 s.
        """
        connection = await self._acquire()
        term = Term()
        watch = asyncio.create_task(_watch(connection, term), name="leadership-watch")
        try:
            yield term
        finally:
            await _abandon(watch)
            # Ending the session releases the lock.
            await connection.close()

    async def _acquire(self) -> PrimaryConnection:
        is_logged = False
        while True:
            try:
                return await self._connect_and_lock()
            except PoolerError as error:
                if not is_logged:
                    _log.error("leadership_impossible", error=str(error))
                    is_logged = True
            except psycopg.OperationalError:
                pass
            await asyncio.sleep(_POLL_SECONDS)

    async def _connect_and_lock(self) -> PrimaryConnection:
        connection = await connect_to_session(self._conninfo)
        try:
            while True:
                if await _try_lock(connection, self._key):
                    return connection
                await asyncio.sleep(_POLL_SECONDS)
        except BaseException:
            await connection.close()
            raise


async def _try_lock(connection: AsyncConnection[Any], key: int) -> bool:
    cursor = await connection.execute(SQL.try_lock, {"key": key})
    row = await cursor.fetchone()
    return row is not None and bool(row[0])


async def _watch(connection: PrimaryConnection, term: Term) -> None:
    try:
        while True:
            asked_at = _now()
            if connection.is_superseded or not await _answers_in_time(connection):
                break
            term.extend(asked_at)
            await asyncio.sleep(_CHECK_SECONDS)
        _log.warning("leadership_lost")
    finally:
        term.lost.set()


async def _answers_in_time(connection: AsyncConnection[Any]) -> bool:
    try:
        with answered_within(connection, _CHECK_TIMEOUT_SECONDS):
            await connection.execute("SELECT 1")
    except psycopg.Error:
        return False
    return True


def _now() -> float:
    """The seconds of a clock that also runs while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


async def _abandon(task: asyncio.Task[Any]) -> None:
    """Cancels the task repeatedly until it ends.

    After the first cancellation, psycopg waits for an answer from the server, which may never come.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=0.2)
