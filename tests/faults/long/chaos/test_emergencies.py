"""Runs with many of the events that a defect of batches, holds and limits needs.

The mutants of these rules (tests/faults/mutations) have to fail here.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.long.chaos import report
from tests.faults.long.chaos.drawing import draw
from tests.faults.long.chaos.plan import Emergency, Fault, Kind, Plan, Round, Stopped, Target, Wire
from tests.faults.long.chaos.run import run

_SECONDS = 8.0
# In seconds. A run starts and settles a stack too, which takes longer on a busy machine.
pytestmark = [pytest.mark.soak, pytest.mark.timeout(240)]
# Odd: agents run without a sandbox.
_SEED = 1
# Longer than the checks excuse after the faults of the fleet controller.
_LONG_SECONDS = 40.0


def _plan(rounds: tuple[Round, ...]) -> Plan:
    """A plan without faults, whose workspaces all play these rounds."""
    plan = draw(_SEED, _SECONDS, 8, logs_alone_seconds=0)
    return replace(plan, faults=(), emergencies=(), rounds=(rounds,) * len(plan.rounds))


def _plain(each: Round) -> Round:
    """The same round without cancellations and stops."""
    return replace(
        each,
        iterations=3,
        iteration_seconds=0.3,
        agent_stopped=Stopped.NEVER,
        stopped_seconds=0.0,
        limit_seconds=None,
        limit_force_after_seconds=None,
        cancels=(),
        stop_after_seconds=None,
    )


def _drawn() -> tuple[Round, ...]:
    return tuple(map(_plain, draw(_SEED, _SECONDS, 1).rounds[0]))


def with_emergencies() -> Plan:
    """A batch, and a hold that is long enough for several submissions, in turn."""

    def emergencies() -> Iterator[Emergency]:
        for second in range(1, int(_SECONDS)):
            hold_seconds = 0.7 if second % 2 else None
            yield Emergency(float(second), Wire.REST, hold_seconds, False, Wire.REST)

    return replace(_plan(_drawn()), emergencies=tuple(emergencies()))


def with_limits() -> Plan:
    """The fleet controller dies twice, while the durations of many tasks end."""
    rounds = tuple(
        replace(
            each,
            iterations=1,
            iteration_seconds=_LONG_SECONDS,
            limit_seconds=0.3 + (index % 7) * 0.2,
            limit_force_after_seconds=0.0,
        )
        for index, each in enumerate(_drawn())
    )
    faults = tuple(Fault(at, Kind.KILL, Target.FLEET, 0.0, 0) for at in (2.0, 5.0))
    return replace(_plan(rounds), faults=faults)


@pytest.mark.parametrize("plan", [with_emergencies, with_limits])
def test_no_promise_is_broken(plan: Callable[[], Plan], tmp_path: Path) -> None:
    outcome = run(plan(), tmp_path / "state")
    assert outcome.violations == [], "\n".join(report.lines(outcome))
