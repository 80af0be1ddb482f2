"""The time of the service. It is the clock of the database, which every program follows.

A program asks the database for the time every second, and counts from the answer with its monotonic
clock. Its own wall clock may be wrong, or be set at any time.

The clock of the database may be set too, and a fail-over may lead to a host whose clock differs.
Such a step must not move the deadlines that were recorded before it. The programs therefore ignore
the step at first. The leading fleet controller records the difference as a correction. From then
on, all programs add it to the clock of the database, even those that start later. The leader
reduces the correction by RETURN_SHARE of the elapsed time. The service thus returns to the clock of
the database, and no duration is wrong by more than this share.

A program that starts has no earlier time to compare with. The leader therefore regularly records
the time of the service. A program that starts later checks with a clock of its machine whether the
clock of the database was set since that record (`_judged`): with the clock since boot if the leader
ran on the same machine, otherwise with the wall clock.

Where other systems are involved (the expiry of their tokens, the times in our signatures), a
correct time matters more than a steady one. `utc_seconds` is for these cases.
"""

import asyncio
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any

import psycopg
import structlog

from evershell.core.errors import UnavailableError
from evershell.store.pool import Connection, Pool, connected
from evershell.store.statements import statements

# How often a program asks for the time.
_SAMPLE_SECONDS = 1.0
# A difference larger than this is not drift: a clock was set.
STEP_SECONDS = 1.0
# How long a program ignores a step that no leader has corrected. After that it follows the
# database, unless the record of the last leader says that the database is wrong. If the clocks of
# the database and of the machine step together, `utc_seconds` also ignores the step for this long,
# because the two may be the same clock.
HOLD_SECONDS = 30.0
# The share of the elapsed time by which the leader reduces the correction. A correction of an hour
# is gone after four days.
RETURN_SHARE = 0.01
# How often the leader records the time of the service.
_RECORD_SECONDS = 30.0
# A wall clock is credible if it is at most this far ahead of the recorded time. A fleet is rarely
# without a leader for longer.
_OUTAGE_SECONDS = 600.0
# How much two clocks that nobody sets may drift apart, as a share of the elapsed time.
_DRIFT_SHARE = 0.001
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SQL = statements("service_clock")

_log = structlog.get_logger()


def machine_clock() -> datetime:
    """The clock of this machine. For tests, and for audit entries before the database answers."""
    return datetime.now(UTC)


def _boottime() -> float:
    """The seconds since the boot of this machine, including the time for which it slept."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def time_of(connection: psycopg.Connection[Any]) -> datetime:
    """The time of the service, for a command. Raises psycopg.Error."""
    row = connection.execute(SQL.service_time_now).fetchone()
    assert row is not None
    moment: datetime = row[0]
    return moment


class ServiceClock:
    """Implements core.ports.Clock. Follows the database while `run` runs."""

    def __init__(
        self,
        pool: Pool,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        boottime: Callable[[], float] = _boottime,
        boot_id: Callable[[], str] = _boot_id,
    ) -> None:
        """`wall`, `monotonic` and `boottime` are the clocks of this machine, in seconds."""
        self._pool = pool
        self._wall = wall
        self._monotonic = monotonic
        self._boottime = boottime
        # Empty if unknown.
        self._boot_id = boot_id()
        # The time of the service minus the monotonic clock. None before the first answer.
        self._base: float | None = None
        # UTC minus the monotonic clock.
        self._utc_base = 0.0
        # When the median of the clocks first differed from this program's UTC by more than
        # STEP_SECONDS; None while they agree.
        self._utc_stepped_at: float | None = None
        # The recorded time of the service in the first answer of the database; None if there was no
        # record.
        self._first_seen: float | None = None
        # The base according to the machine's clock, if this clock contradicted the database at the
        # first answer. When this program begins to lead, it uses the earlier of `_base` and this
        # base. None if the clocks agreed, or once another program has led.
        self._earlier_base: float | None = None
        self._is_known = asyncio.Event()
        self._leads = False
        self._is_off = False
        # When this program first saw a step that it does not follow yet; None without such a step.
        self._stepped_at: float | None = None
        # When the correction was last reduced.
        self._returned_at = monotonic()
        # When the record was last written in this term of leadership.
        self._recorded_at = -math.inf
        # What is added to the clock of the database, in seconds.
        self.correction_seconds = 0.0
        # The correction with which this program last followed the database.
        self._followed_correction = 0.0

    def __call__(self) -> datetime:
        """The time of the service. Raises UnavailableError before the first answer."""
        return _EPOCH + timedelta(seconds=self.unix_seconds())

    def for_audit(self) -> datetime:
        """The time of the service, or the time of this machine before the first answer.

        Audit entries of refused calls need a time even if the database has never answered.
        """
        return machine_clock() if self._base is None else self()

    def unix_seconds(self) -> float:
        """Like calling the clock, but in seconds since 1970."""
        if self._base is None:
            raise UnavailableError("the database has not told the time yet")
        return self._base + self._monotonic()

    def utc_seconds(self) -> float:
        """UTC in seconds since 1970, as the median of three clocks.

        They are the clock of the database, the clock of this machine, and this program's own count
        since its start. If only one clock steps, the result does not change. If the clocks of the
        database and of this machine step together, this program follows them after HOLD_SECONDS.
        Raises UnavailableError before the first answer of the database.
        """
        if self._base is None:
            raise UnavailableError("the database has not told the time yet")
        return self._utc_base + self._monotonic()

    @property
    def machine_offset_seconds(self) -> float:
        """How far this machine's clock is ahead of the service; 0 before the first answer."""
        return 0.0 if self._base is None else self._wall() - self.unix_seconds()

    async def known(self) -> None:
        """Waits for the first answer of the database."""
        await self._is_known.wait()

    @contextmanager
    def leading(self) -> Iterator[None]:
        """Inside the block, this program corrects steps of the database's clock."""
        if self._earlier_base is not None and self._base is not None:
            self._base = min(self._base, self._earlier_base)
            self._earlier_base = None
        self._leads, self._returned_at = True, self._monotonic()
        self._recorded_at = -math.inf
        try:
            yield
        finally:
            self._leads = False

    async def run(self) -> None:
        """Follows the database until it is cancelled."""
        while True:
            # psycopg.Error is raised, for example, if a migration is not applied yet.
            with suppress(UnavailableError, psycopg.Error):
                await self.follow()
            await asyncio.sleep(_SAMPLE_SECONDS)

    async def follow(self) -> None:
        """Asks the database once. Raises UnavailableError, psycopg.Error."""
        async with connected(self._pool) as connection:
            sent = self._monotonic()
            row = await (await connection.execute(SQL.sample, prepare=True)).fetchone()
            received = self._monotonic()
            assert row is not None
            # The database read its clock at some moment between `sent` and `received`.
            step = self._take(row, sent, received)
            if self._leads:
                await self._record(connection, self._due_return() - step)
        self._watch_machine()

    def _take(self, row: Any, sent: float, received: float) -> float:
        """Adjusts this program's clock to an answer of the database, but at first ignores a step.

        Returns the step of the database's clock in seconds if it was ignored, else 0.
        """
        middle = row.database_seconds - (sent + received) / 2
        is_first = self._base is None
        # The clock of the database may be set again between a correction and the next answer.
        # Therefore this program follows a new correction only after two answers have had it.
        is_settled = abs(row.correction_seconds - self.correction_seconds) <= STEP_SECONDS
        self.correction_seconds = row.correction_seconds
        if self._base is None:
            self._base = self._judged(row, middle + row.correction_seconds, received)
            self._utc_base = self._base
            self._followed_correction = row.correction_seconds
            self._first_seen = row.seen_seconds
            self._earlier_base = self._contradicting(row, received)
            self._is_known.set()
        elif row.seen_seconds != self._first_seen:
            # The record has changed since the first answer, so another program has led. Its
            # correction counts, and not the clock of this machine.
            self._earlier_base = None
        self._take_utc(middle, is_first)
        earliest: float = row.database_seconds - received + row.correction_seconds
        latest: float = row.database_seconds - sent + row.correction_seconds
        nearest = min(max(self._base, earliest), latest)
        step, now = nearest - self._base, self._monotonic()
        is_new = abs(row.correction_seconds - self._followed_correction) > STEP_SECONDS
        if abs(step) > STEP_SECONDS and not (is_new and is_settled):
            if self._stepped_at is None:
                self._stepped_at = now
                _log.warning("database_clock_stepped", seconds=round(step, 3))
            if (
                self._leads
                or now < self._stepped_at + HOLD_SECONDS
                or self._judged(row, nearest, received) != nearest
            ):
                return step
            _log.warning("database_clock_followed", seconds=round(step, 3))
        self._base, self._stepped_at = nearest, None
        self._followed_correction = row.correction_seconds
        return 0.0

    def _take_utc(self, database_base: float, is_first: bool) -> None:
        """Follows the median of the three clocks.

        If the database runs on this machine, its clock and the machine's clock are the same clock
        and step together.
        """
        now = self._monotonic()
        base = median((database_base, self._wall() - now, self._utc_base))
        step = base - self._utc_base
        if not is_first and abs(step) > STEP_SECONDS:
            if self._utc_stepped_at is None:
                self._utc_stepped_at = now
                _log.warning("utc_stepped", seconds=round(step, 3))
            if now < self._utc_stepped_at + HOLD_SECONDS:
                return
        self._utc_base, self._utc_stepped_at = base, None

    def _contradicting(self, row: Any, received: float) -> float | None:
        """The base by this machine's clock, if the clock is credible and contradicts the database.

        The database's clock may then have been set by less than _OUTAGE_SECONDS. With the earlier
        of the two bases, no deadline passes too early. Returns None if the last leader ran on this
        machine: `_judged` then knows exactly how much time has passed.
        """
        seen, machine = row.seen_seconds, self._wall()
        if seen is None or (self._boot_id and row.boot_id == self._boot_id):
            return None
        is_same = abs(machine - row.database_seconds) <= STEP_SECONDS
        return machine - received if _is_soon_after(seen, machine) and not is_same else None

    def _judged(self, row: Any, base: float, received: float) -> float:
        """The database's `base`, or a better one if the record contradicts it.

        Trusts the two that agree out of three: the clock of the database, the recorded time plus
        the time that has passed since, and the clock of this machine.
        """
        seen: float | None = row.seen_seconds
        if seen is None:
            return base
        database = base + received
        if self._boot_id and row.boot_id == self._boot_id:
            # The last leader ran on this machine, during the same boot. The time since the boot
            # therefore shows exactly how much time has passed.
            passed: float = self._boottime() - row.boot_seconds
            is_right = abs(database - seen - passed) <= STEP_SECONDS + _DRIFT_SHARE * passed
            return base if is_right else seen + passed - received
        machine = self._wall()
        if _is_soon_after(seen, database):
            return base
        if database >= seen and not _is_soon_after(seen, machine):
            return base
        return max(machine, seen) - received

    def _due_return(self) -> float:
        """How much to add to the correction now, so that it slowly returns to 0."""
        now = self._monotonic()
        most = RETURN_SHARE * (now - self._returned_at)
        self._returned_at = now
        return min(max(-self.correction_seconds, -most), most)

    async def _record(self, connection: Connection, seconds: float) -> None:
        """Adds `seconds` to the correction, unless another program has changed it since the answer.

        Also records the time of the service. If `seconds` is 0, does so only every _RECORD_SECONDS.
        """
        now = self._monotonic()
        if not seconds and now < self._recorded_at + _RECORD_SECONDS:
            return
        parameters = {
            "seconds": seconds,
            "seen": self.unix_seconds(),
            "boot_id": self._boot_id,
            "boot": self._boottime(),
            "correction": self.correction_seconds,
        }
        cursor = await connection.execute(SQL.record, parameters, prepare=True)
        if cursor.rowcount == 1:
            self.correction_seconds += seconds
            self._followed_correction = self.correction_seconds
            self._recorded_at = now
            if abs(seconds) > STEP_SECONDS:
                _log.warning("service_clock_corrected", seconds=round(seconds, 3))

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


def _is_soon_after(seen: float, moment: float) -> bool:
    return -STEP_SECONDS <= moment - seen <= _OUTAGE_SECONDS
