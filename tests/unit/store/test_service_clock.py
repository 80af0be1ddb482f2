"""The time of the service: a program follows the database, and steps of clocks move no deadline.

A program whose monotonic clock is moved sees what it would see if the clock of the database was set
the other way.
"""

import time
from collections.abc import Iterator
from datetime import datetime

import pytest

from evershell.core.errors import UnavailableError
from evershell.store import service_clock
from evershell.store.connections import Pool
from evershell.store.service_clock import ServiceClock

HOUR = 3_600.0
# Far more than a query takes, and far less than an hour.
SLACK_SECONDS = 60.0
_SET_CORRECTION = "UPDATE service_clock SET correction_seconds = %s"


class Machine:
    """A program on a machine whose clocks a test moves."""

    def __init__(self, pool: Pool) -> None:
        self.wall_ahead_seconds = 0.0
        self.monotonic_ahead_seconds = 0.0
        # How long the program stands still before each of its next looks at the clock.
        self.stalls: Iterator[float] = iter(())
        self.clock = ServiceClock(pool, self._wall, self._monotonic)

    def _wall(self) -> float:
        return time.time() + self.wall_ahead_seconds

    def _monotonic(self) -> float:
        self.monotonic_ahead_seconds += next(self.stalls, 0.0)
        return time.monotonic() + self.monotonic_ahead_seconds

    def set_database(self, ahead_seconds: float) -> None:
        """From now on, the clock of the database seems to be ahead by this much."""
        self.monotonic_ahead_seconds -= ahead_seconds

    @property
    def ahead_seconds(self) -> float:
        """How far the time of the service is ahead of the clock of the database as it is."""
        return self.clock.unix_seconds() - time.time()


@pytest.fixture
async def machine(pool: Pool) -> Machine:
    async with pool.connection() as connection:
        await connection.execute(_SET_CORRECTION, (0,))
    return Machine(pool)


async def test_the_time_is_unknown_until_the_database_has_told_it(machine: Machine) -> None:
    with pytest.raises(UnavailableError):
        machine.clock()
    # Refusals are recorded all the same.
    machine.clock.for_audit()
    await machine.clock.follow()
    await machine.clock.known()
    assert isinstance(machine.clock(), datetime)


@pytest.mark.parametrize("seconds", [HOUR, -HOUR])
async def test_the_clock_of_the_machine_decides_nothing(machine: Machine, seconds: float) -> None:
    machine.wall_ahead_seconds = seconds
    await machine.clock.follow()
    assert machine.ahead_seconds == pytest.approx(0, abs=SLACK_SECONDS)
    assert machine.clock.machine_offset_seconds == pytest.approx(seconds, abs=SLACK_SECONDS)
    machine.wall_ahead_seconds = -seconds
    assert machine.ahead_seconds == pytest.approx(0, abs=SLACK_SECONDS)


@pytest.mark.parametrize("seconds", [HOUR, -HOUR])
async def test_the_leader_corrects_a_step_of_the_database(
    machine: Machine, pool: Pool, seconds: float
) -> None:
    await machine.clock.follow()
    machine.set_database(seconds)
    with machine.clock.leading():
        for _ in range(2):
            await machine.clock.follow()
            assert machine.ahead_seconds == pytest.approx(-seconds, abs=SLACK_SECONDS)
    assert machine.clock.correction_seconds == pytest.approx(-seconds, abs=SLACK_SECONDS)
    later = Machine(pool)
    await later.clock.follow()
    assert later.ahead_seconds == pytest.approx(-seconds, abs=SLACK_SECONDS)


@pytest.mark.parametrize("seconds", [HOUR, -HOUR])
async def test_without_a_leader_a_step_is_followed_after_a_while(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    await machine.clock.follow()
    machine.set_database(seconds)
    await machine.clock.follow()
    assert machine.ahead_seconds == pytest.approx(-seconds, abs=SLACK_SECONDS)
    monkeypatch.setattr(service_clock, "HOLD_SECONDS", 0.0)
    await machine.clock.follow()
    assert machine.ahead_seconds == pytest.approx(0, abs=SLACK_SECONDS)
    assert machine.clock.correction_seconds == 0


async def test_a_program_that_started_before_the_correction_follows_it_at_once(
    machine: Machine, pool: Pool
) -> None:
    await machine.clock.follow()
    machine.set_database(HOUR)
    early = Machine(pool)
    await early.clock.follow()
    with machine.clock.leading():
        await machine.clock.follow()
    await early.clock.follow()
    assert early.ahead_seconds == pytest.approx(-HOUR, abs=SLACK_SECONDS)


async def test_the_correction_is_taken_back_slowly(machine: Machine, pool: Pool) -> None:
    async with pool.connection() as connection:
        await connection.execute(_SET_CORRECTION, (HOUR,))
    await machine.clock.follow()
    began = time.monotonic()
    with machine.clock.leading():
        await machine.clock.follow()
    passed_seconds = time.monotonic() - began
    back_seconds = HOUR - machine.clock.correction_seconds
    assert 0 < back_seconds <= passed_seconds * service_clock.RETURN_SHARE


async def test_a_late_answer_is_not_a_step(machine: Machine) -> None:
    await machine.clock.follow()
    with machine.clock.leading():
        # Between the question and the answer.
        machine.stalls = iter([0.0, HOUR])
        await machine.clock.follow()
    assert machine.clock.correction_seconds == 0
