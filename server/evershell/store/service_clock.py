"""The time of the service. It is the clock of the database, which every program follows.

A program asks the database for the time every second, and counts from the answer with its monotonic
clock. Its own wall clock decides nothing, so it may be wrong, or be set at any time.

The clock of the database may be set too, and a fail-over may lead to a host whose clock differs.
Deadlines that were recorded before must then keep their distance. The programs therefore ignore the
step at first. The leading fleet controller records the difference as a correction. From then on,
all programs add it to the clock of the database, even those that start later. The leader reduces
the correction by RETURN_SHARE of the elapsed time, so the service returns to the clock of the
database, and no duration is wrong by a larger share. Without a leader, the programs follow the
clock of the database after HOLD_SECONDS.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import structlog

from evershell.core.errors import UnavailableError
from evershell.store.connections import Connection, Pool, connected

# How often a program asks for the time.
_SAMPLE_SECONDS = 1.0
# A difference that is not the drift of a monotonic clock: a clock was set.
STEP_SECONDS = 1.0
# How long a program ignores a step that no leader has corrected. A standby becomes the leader
# within 10 s.
HOLD_SECONDS = 30.0
# The share of the elapsed time by which the leader takes the correction back. An hour takes four
# days.
RETURN_SHARE = 0.01

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# The time of the service in a statement.
SERVICE_TIME = (
    "(clock_timestamp() + (SELECT correction_seconds FROM service_clock) * interval '1 second')"
)
_SAMPLE = (
    f"SELECT extract(epoch FROM {SERVICE_TIME})::float8 AS seconds, correction_seconds "
    "FROM service_clock"
)
_CORRECT = (
    "UPDATE service_clock SET correction_seconds = correction_seconds + %s "
    "WHERE correction_seconds = %s"
)

_log = structlog.get_logger()


def machine_clock() -> datetime:
    """The clock of this machine, for tests, and for audit entries before the first answer."""
    return datetime.now(UTC)


def time_of(connection: psycopg.Connection[Any]) -> datetime:
    """The time of the service, for a command. Raises psycopg.Error."""
    row = connection.execute(f"SELECT {SERVICE_TIME}").fetchone()
    assert row is not None
    moment: datetime = row[0]
    return moment


class ServiceClock:
    """Implements core.ports.Clock. Runs while `run` runs."""

    def __init__(
        self,
        pool: Pool,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`wall` and `monotonic` are the clocks of this machine, in seconds."""
        self._pool = pool
        self._wall = wall
        self._monotonic = monotonic
        # The time of the service, less the monotonic clock. None before the first answer.
        self._base: float | None = None
        self._is_known = asyncio.Event()
        self._leads = False
        self._is_off = False
        # When this program first saw the step that it does not follow yet; None without one.
        self._stepped_at: float | None = None
        # When the correction was taken back last.
        self._returned_at = monotonic()
        # What is added to the clock of the database, in seconds.
        self.correction_seconds = 0.0

    def __call__(self) -> datetime:
        """The time of the service. Raises UnavailableError before the first answer."""
        return _EPOCH + timedelta(seconds=self.unix_seconds())

    def for_audit(self) -> datetime:
        """The time of the service. Before the first answer, the time of this machine: refusals are
        recorded even while the database is unavailable.
        """
        return machine_clock() if self._base is None else self()

    def unix_seconds(self) -> float:
        """The time of the service in seconds since 1970. Raises UnavailableError like a call."""
        if self._base is None:
            raise UnavailableError("the database has not told the time yet")
        return self._base + self._monotonic()

    @property
    def machine_offset_seconds(self) -> float:
        """How far this machine's clock is ahead of the service. 0 before the first answer."""
        return 0.0 if self._base is None else self._wall() - self.unix_seconds()

    async def known(self) -> None:
        """Returns after the first answer."""
        await self._is_known.wait()

    @contextmanager
    def leading(self) -> Iterator[None]:
        """Inside the block, this program corrects steps of the database's clock."""
        self._leads, self._returned_at = True, self._monotonic()
        try:
            yield
        finally:
            self._leads = False

    async def run(self) -> None:
        """Follows the database until it is cancelled."""
        while True:
            # A migration may not have been applied yet.
            with suppress(UnavailableError, psycopg.Error):
                await self.follow()
            await asyncio.sleep(_SAMPLE_SECONDS)

    async def follow(self) -> None:
        """Asks the database once. Raises UnavailableError, psycopg.Error."""
        async with connected(self._pool) as connection:
            sent = self._monotonic()
            row = await (await connection.execute(_SAMPLE, prepare=True)).fetchone()
            received = self._monotonic()
            assert row is not None
            # The database read its clock at some moment between `sent` and `received`.
            step = self._take(row.seconds - received, row.seconds - sent, row.correction_seconds)
            if self._leads:
                await self._correct(connection, self._due_return() - step)
        self._watch_machine()

    def _take(self, earliest: float, latest: float, correction: float) -> float:
        """Follows an answer by which the base is between `earliest` and `latest`.

        Returns 0, or, if this program does not follow it, how far the database's clock was set.
        """
        was_corrected = abs(correction - self.correction_seconds) > STEP_SECONDS
        self.correction_seconds = correction
        if self._base is None:
            self._base = (earliest + latest) / 2
            self._is_known.set()
        nearest = min(max(self._base, earliest), latest)
        step, now = nearest - self._base, self._monotonic()
        if abs(step) > STEP_SECONDS and not was_corrected:
            if self._stepped_at is None:
                self._stepped_at = now
                _log.warning("database_clock_stepped", seconds=round(step, 3))
            if self._leads or now < self._stepped_at + HOLD_SECONDS:
                return step
            _log.warning("database_clock_followed", seconds=round(step, 3))
        self._base, self._stepped_at = nearest, None
        return 0.0

    def _due_return(self) -> float:
        """What is now added to the correction to take it back."""
        now = self._monotonic()
        most = RETURN_SHARE * (now - self._returned_at)
        self._returned_at = now
        return min(max(-self.correction_seconds, -most), most)

    async def _correct(self, connection: Connection, seconds: float) -> None:
        """Adds to the correction, unless another program has changed it since the answer."""
        if not seconds:
            return
        parameters = (seconds, self.correction_seconds)
        cursor = await connection.execute(_CORRECT, parameters, prepare=True)
        if cursor.rowcount == 1:
            self.correction_seconds += seconds

    def _watch_machine(self) -> None:
        """Logs when this machine's clock becomes wrong, and when it is right again."""
        offset = self.machine_offset_seconds
        if self._is_off == (abs(offset) > STEP_SECONDS):
            return
        self._is_off = not self._is_off
        if self._is_off:
            _log.warning("machine_clock_off", ahead_seconds=round(offset, 3))
        else:
            _log.info("machine_clock_right")
