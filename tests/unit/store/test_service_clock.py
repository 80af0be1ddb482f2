"""The time of the service follows the database, but a step of a clock does not move deadlines.

The tests cannot set the clock of the database. They move the monotonic clock of a program instead:
to the program, this looks like an opposite step of the database's clock.
"""

import time
from collections.abc import Iterator
from datetime import datetime

import pytest

from evershell.core.errors import UnavailableError
from evershell.store import service_clock
from evershell.store.pool import Pool
from evershell.store.service_clock import ServiceClock

HOUR = 3_600.0
# A step of a clock, in seconds. A fleet may be without a leader for longer than this.
STEP = 300.0
# Far more than a query takes, and far less than an hour.
SLACK_SECONDS = 60.0
_RESET = "UPDATE service_clock SET correction_seconds = 0, seen_seconds = NULL, boot_id = NULL"
_MOVE_RECORD = "UPDATE service_clock SET seen_seconds = seen_seconds - %s"
_SET_CORRECTION = "UPDATE service_clock SET correction_seconds = %s"


class Machine:
    """A program on a machine whose clocks a test moves."""

    def __init__(self, pool: Pool, boot_id: str = "first", database_ahead: float = 0.0) -> None:
        self._pool = pool
        self.wall_ahead_seconds = 0.0
        self.database_ahead_seconds = database_ahead
        # How long the program stands still before each of its next reads of the clock.
        self.stalls: Iterator[float] = iter(())
        self._stalled_seconds = 0.0
        self.clock = ServiceClock(
            pool, self._wall, self._monotonic, time.monotonic, lambda: boot_id
        )

    def another(self, boot_id: str = "first") -> "Machine":
        """A program that starts now, on the same machine unless `boot_id` differs."""
        return Machine(self._pool, boot_id, self.database_ahead_seconds)

    def _wall(self) -> float:
        return time.time() + self.wall_ahead_seconds - self.database_ahead_seconds

    def _monotonic(self) -> float:
        self._stalled_seconds += next(self.stalls, 0.0)
        return time.monotonic() + self._stalled_seconds - self.database_ahead_seconds

    async def set_database(self, ahead_seconds: float) -> None:
        """Makes the clock of the database seem to be ahead of the right time by `ahead_seconds`.

        Moves everything else the other way: the wall clock, the monotonic clock, and the
        recorded times.
        """
        moved_seconds = ahead_seconds - self.database_ahead_seconds
        self.database_ahead_seconds = ahead_seconds
        async with self._pool.connection() as connection:
            await connection.execute(_MOVE_RECORD, (moved_seconds,))

    @property
    def ahead_seconds(self) -> float:
        """How far the time of the service is ahead of the database's real clock."""
        return self.clock.unix_seconds() - time.time()

    @property
    def off_seconds(self) -> float:
        """How far the time of the service is ahead of the right time."""
        return self.ahead_seconds + self.database_ahead_seconds

    @property
    def utc_off_seconds(self) -> float:
        """How far this program's estimate of UTC is ahead of the right time."""
        return self.clock.utc_seconds() - time.time() + self.database_ahead_seconds


async def both_set(machine: Machine, program: Machine, ahead_seconds: float) -> None:
    """Makes the clock of the database seem to be ahead by `ahead_seconds` to two programs."""
    await machine.set_database(ahead_seconds)
    program.database_ahead_seconds = ahead_seconds


@pytest.fixture
async def machine(pool: Pool) -> Machine:
    async with pool.connection() as connection:
        await connection.execute(_RESET)
    return Machine(pool)


async def test_the_time_is_unknown_until_the_database_has_told_it(machine: Machine) -> None:
    with pytest.raises(UnavailableError):
        machine.clock()
    # The audit log still gets a time, because refused calls are recorded even now.
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
async def test_the_leader_corrects_a_step_of_the_database(machine: Machine, seconds: float) -> None:
    await machine.clock.follow()
    await machine.set_database(seconds)
    with machine.clock.leading():
        for _ in range(2):
            await machine.clock.follow()
            assert machine.ahead_seconds == pytest.approx(-seconds, abs=SLACK_SECONDS)
    assert machine.clock.correction_seconds == pytest.approx(-seconds, abs=SLACK_SECONDS)
    later = machine.another()
    await later.clock.follow()
    assert later.ahead_seconds == pytest.approx(-seconds, abs=SLACK_SECONDS)


@pytest.mark.parametrize("seconds", [HOUR, -HOUR])
async def test_without_a_leader_a_step_is_followed_after_a_while(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    await machine.clock.follow()
    await machine.set_database(seconds)
    await machine.clock.follow()
    assert machine.ahead_seconds == pytest.approx(-seconds, abs=SLACK_SECONDS)
    monkeypatch.setattr(service_clock, "HOLD_SECONDS", 0.0)
    await machine.clock.follow()
    assert machine.ahead_seconds == pytest.approx(0, abs=SLACK_SECONDS)
    assert machine.clock.correction_seconds == 0


async def test_a_program_that_started_before_the_correction_follows_it(machine: Machine) -> None:
    await machine.clock.follow()
    await machine.set_database(HOUR)
    early = machine.another()
    await early.clock.follow()
    with machine.clock.leading():
        await machine.clock.follow()
    for _ in range(2):
        await early.clock.follow()
    assert early.ahead_seconds == pytest.approx(-HOUR, abs=SLACK_SECONDS)


@pytest.mark.parametrize("sees_first_step", [True, False])
async def test_a_second_step_before_the_next_answer_is_not_followed(
    machine: Machine, sees_first_step: bool
) -> None:
    """The leader corrects the first step. The next answer shows the correction and both steps."""
    program = machine.another()
    for each in (machine, program):
        await each.clock.follow()
    await both_set(machine, program, HOUR)
    if sees_first_step:
        await program.clock.follow()
    with machine.clock.leading():
        await machine.clock.follow()
        await both_set(machine, program, 0)
        await program.clock.follow()
        assert program.off_seconds == pytest.approx(0, abs=SLACK_SECONDS)
        await machine.clock.follow()
    await program.clock.follow()
    assert program.off_seconds == pytest.approx(0, abs=SLACK_SECONDS)


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
        # The program stands still for an hour between its question and the answer.
        machine.stalls = iter([0.0, HOUR])
        await machine.clock.follow()
    assert machine.clock.correction_seconds == 0


async def led(machine: Machine) -> None:
    """Makes the program lead for a moment and record the time."""
    await machine.clock.follow()
    with machine.clock.leading():
        await machine.clock.follow()


@pytest.mark.parametrize("wall_off", [0, HOUR, -HOUR])
@pytest.mark.parametrize("step", [HOUR, -HOUR])
async def test_a_step_while_no_program_runs_is_found_at_the_start(
    machine: Machine, step: float, wall_off: float
) -> None:
    """The time since the machine's boot shows the step, even if its wall clock is wrong as well."""
    await led(machine)
    await machine.set_database(step)
    leader, worker = machine.another(), machine.another()
    leader.wall_ahead_seconds = wall_off
    await worker.clock.follow()
    assert worker.off_seconds == pytest.approx(0, abs=SLACK_SECONDS)
    await led(leader)
    assert leader.off_seconds == pytest.approx(0, abs=SLACK_SECONDS)
    assert leader.clock.correction_seconds == pytest.approx(-step, abs=SLACK_SECONDS)
    await worker.clock.follow()
    assert worker.off_seconds == pytest.approx(0, abs=SLACK_SECONDS)
    # The clock of the database is set right again.
    await leader.set_database(0)
    with leader.clock.leading():
        await leader.clock.follow()
    assert leader.off_seconds == pytest.approx(0, abs=SLACK_SECONDS)
    assert leader.clock.correction_seconds == pytest.approx(0, abs=SLACK_SECONDS)


@pytest.mark.parametrize(
    ("step", "wall_off"), [(HOUR, 0), (-HOUR, 0), (0, HOUR), (0, -HOUR), (-2 * HOUR, -HOUR)]
)
async def test_two_of_three_clocks_decide_on_another_machine(
    machine: Machine, step: float, wall_off: float
) -> None:
    """The database's clock, the machine's clock and the last recorded time decide.

    If both clocks are behind the recorded time, that time is the best estimate.
    """
    await led(machine)
    await machine.set_database(step)
    leader = machine.another("second")
    leader.wall_ahead_seconds = wall_off
    await led(leader)
    assert leader.off_seconds == pytest.approx(0, abs=SLACK_SECONDS)
    assert leader.clock.correction_seconds == pytest.approx(-step, abs=SLACK_SECONDS)


@pytest.mark.parametrize(("wall_off", "off"), [(0, 0), (HOUR, 0), (-HOUR, 0)])
async def test_an_outage_of_hours_is_no_step(
    machine: Machine, pool: Pool, wall_off: float, off: float
) -> None:
    await led(machine)
    async with pool.connection() as connection:
        await connection.execute("UPDATE service_clock SET seen_seconds = seen_seconds - 10800")
    leader = machine.another("second")
    leader.wall_ahead_seconds = wall_off
    await led(leader)
    assert leader.off_seconds == pytest.approx(off, abs=SLACK_SECONDS)


async def test_a_step_is_not_followed_if_the_record_contradicts_it(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program no longer waits for a leader, but the recorded time contradicts the step."""
    monkeypatch.setattr(service_clock, "HOLD_SECONDS", 0.0)
    await led(machine)
    await machine.set_database(HOUR)
    await machine.clock.follow()
    assert machine.off_seconds == pytest.approx(0, abs=SLACK_SECONDS)


@pytest.mark.parametrize("seconds", [HOUR, -HOUR])
async def test_no_single_clock_moves_utc(machine: Machine, seconds: float) -> None:
    await machine.clock.follow()
    await machine.set_database(seconds)
    for machine.wall_ahead_seconds in (0, -seconds):
        await machine.clock.follow()
        assert machine.utc_off_seconds == pytest.approx(0, abs=SLACK_SECONDS)
    await machine.set_database(0)
    await machine.clock.follow()
    assert machine.utc_off_seconds == pytest.approx(0, abs=SLACK_SECONDS)


@pytest.mark.parametrize("seconds", [HOUR, -HOUR])
async def test_what_two_clocks_say_is_utc_after_a_while(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    """The clocks of the database and the machine step together, and UTC follows them after a while.

    The time of the service does not follow them, so that no deadline moves.
    """
    await led(machine)
    await machine.set_database(seconds)
    machine.wall_ahead_seconds = seconds
    with machine.clock.leading():
        for _ in range(2):
            await machine.clock.follow()
            assert machine.utc_off_seconds == pytest.approx(0, abs=SLACK_SECONDS)
        monkeypatch.setattr(service_clock, "HOLD_SECONDS", 0.0)
        await machine.clock.follow()
    assert machine.utc_off_seconds == pytest.approx(seconds, abs=SLACK_SECONDS)
    assert machine.off_seconds == pytest.approx(0, abs=SLACK_SECONDS)


async def test_utc_is_right_from_the_start_whatever_the_correction(
    machine: Machine, pool: Pool
) -> None:
    async with pool.connection() as connection:
        await connection.execute(_SET_CORRECTION, (HOUR,))
    await machine.clock.follow()
    assert machine.ahead_seconds == pytest.approx(HOUR, abs=SLACK_SECONDS)
    assert machine.utc_off_seconds == pytest.approx(0, abs=SLACK_SECONDS)


async def test_a_leader_on_another_machine_takes_the_earlier_of_two_credible_clocks(
    machine: Machine,
) -> None:
    """A fleet may be without a leader for longer than the step, so both clocks are credible."""
    await led(machine)
    await machine.set_database(STEP)
    leader = machine.another("second")
    await leader.clock.follow()
    with leader.clock.leading():
        # The time is right even before the leader asks the database again, so no lease ends early.
        assert leader.off_seconds == pytest.approx(0, abs=SLACK_SECONDS)
        await leader.clock.follow()
    assert leader.off_seconds == pytest.approx(0, abs=SLACK_SECONDS)
    assert leader.clock.correction_seconds == pytest.approx(-STEP, abs=SLACK_SECONDS)


@pytest.mark.parametrize("wall_off", [STEP, -STEP])
async def test_the_clock_of_a_machine_decides_nothing_if_another_program_has_led_since(
    machine: Machine, pool: Pool, wall_off: float
) -> None:
    """The other program agreed with the database."""
    await led(machine)
    async with pool.connection() as connection:
        await connection.execute(_MOVE_RECORD, (1.5 * STEP,))
    standby = machine.another("second")
    standby.wall_ahead_seconds = wall_off
    await standby.clock.follow()
    assert standby.off_seconds == pytest.approx(0, abs=SLACK_SECONDS)
    await led(machine)
    await led(standby)
    assert standby.off_seconds == pytest.approx(0, abs=SLACK_SECONDS)
    assert standby.clock.correction_seconds == 0


async def test_a_correction_is_no_contradiction(machine: Machine, pool: Pool) -> None:
    """The database and the new leader's machine agree. The time of the service is ahead of both."""
    async with pool.connection() as connection:
        await connection.execute(_SET_CORRECTION, (STEP,))
    await led(machine)
    async with pool.connection() as connection:
        await connection.execute(_MOVE_RECORD, (STEP,))
    leader = machine.another("second")
    await led(leader)
    assert leader.ahead_seconds == pytest.approx(STEP, abs=SLACK_SECONDS)
