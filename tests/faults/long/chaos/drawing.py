"""Draws the plan of a run from a seed, before anything starts."""

import random
from collections.abc import Iterator

from tests.faults.long.chaos.plan import (
    Cancel,
    Emergency,
    Fault,
    Kind,
    Plan,
    Round,
    Stopped,
    Target,
    Wire,
)

# The relative frequency of each fault.
_WEIGHTS: dict[tuple[Kind, Target], int] = {
    **{
        (kind, target): 4
        for kind in (Kind.FREEZE, Kind.KILL, Kind.RESTART)
        for target in (Target.WORKER_0, Target.WORKER_1)
    },
    (Kind.FREEZE, Target.AGENT): 10,
    (Kind.KILL, Target.AGENT): 8,
    (Kind.FREEZE, Target.FLEET): 5,
    (Kind.KILL, Target.FLEET): 5,
    (Kind.RESTART, Target.FLEET): 2,
    (Kind.FREEZE, Target.ENVOY): 3,
    (Kind.KILL, Target.ENVOY): 2,
    (Kind.RESTART, Target.ENVOY): 1,
    (Kind.FREEZE, Target.DATABASE): 3,
    (Kind.KILL, Target.DATABASE): 2,
    (Kind.FREEZE, Target.BACKEND): 4,
    (Kind.KILL, Target.BACKEND): 1,
    (Kind.RESTART, Target.BACKEND): 4,
    (Kind.FILL, Target.PODS): 5,
    (Kind.FILL, Target.LOGS): 5,
    (Kind.FILL, Target.DATABASE): 5,
}
_MEAN_SECONDS_BETWEEN_FAULTS = 0.9
# The time without faults before the first fault, and after the last one.
_CALM_SECONDS = 1.0
_FREEZE_SECONDS = (0.2, 3.0)
_FILL_SECONDS = (1.0, 4.0)
# The relative frequency of each member of Stopped, in percent.
_STOPPED_WEIGHTS = (96, 2, 2)
_STOPPED_SECONDS = (0.3, 3.0)
# The share of the tasks with an agent that stays stopped that are cancelled with force. The others
# last until the lease expires.
_FORCED_SHARE = 0.8
# The share of the tasks with a limit of their duration. Half of these are forced at the limit, and
# have a single iteration that takes longer than any limit.
_LIMITED_SHARE = 0.15
_LIMIT_SECONDS = (0.3, 2.0)
_LIMITED_ITERATION_SECONDS = 20.0
# The time between two emergencies, and how long the organization is on hold.
_EMERGENCY_SECONDS = (1.0, 5.0)
_HOLD_SECONDS = (0.3, 1.5)
# Rounds are drawn for this much longer, for the last faults and the recovery before each.
_SECONDS_BEYOND = 30.0
# No round is shorter, so a workspace never runs out of rounds.
_SHORTEST_ROUND_SECONDS = 0.2


def draw(seed: int, seconds: float, workspaces: int, *, logs_alone_seconds: float = 4.0) -> Plan:
    """Draws the plan of a seed.

    The last fault fills the disk of the logs for `logs_alone_seconds`, without any other fault. 0
    omits it.
    """
    chance = random.Random(seed)
    faults = tuple(_faults(chance, seconds, workspaces))
    last = (
        (Fault(0.0, Kind.FILL, Target.LOGS, logs_alone_seconds, 0),) if logs_alone_seconds else ()
    )
    rounds = draw_rounds(chance, seconds, workspaces)
    return Plan(seed, seconds, faults, last, rounds, tuple(draw_emergencies(chance, seconds)))


def draw_rounds(
    chance: random.Random, seconds: float, workspaces: int
) -> tuple[tuple[Round, ...], ...]:
    """Draws the rounds of each workspace."""
    count = int((seconds + _SECONDS_BEYOND) / _SHORTEST_ROUND_SECONDS)
    return tuple(tuple(_round(chance) for _ in range(count)) for _ in range(workspaces))


def _faults(chance: random.Random, seconds: float, workspaces: int) -> Iterator[Fault]:
    pairs, weights = list(_WEIGHTS), list(_WEIGHTS.values())
    at = _CALM_SECONDS
    while (
        at := at + chance.expovariate(1 / _MEAN_SECONDS_BETWEEN_FAULTS)
    ) < seconds - _CALM_SECONDS:
        ((kind, target),) = chance.choices(pairs, weights)
        lasts = _FILL_SECONDS if kind is Kind.FILL else _FREEZE_SECONDS
        yield Fault(
            round(at, 3),
            kind,
            target,
            round(chance.uniform(*lasts), 3),
            chance.randrange(workspaces),
        )


def _round(chance: random.Random) -> Round:
    wires = list(Wire)
    iterations, iteration_seconds = chance.randint(1, 5), round(chance.uniform(0.05, 0.4), 2)
    # A few tasks may end before they are cancelled, and some are cancelled just as they end.
    length_seconds = iterations * iteration_seconds
    first = chance.uniform(0, length_seconds + 0.3)
    cancels = []
    for _ in range(chance.choice((0, 1, 1, 2, 3, 4))):
        cancels.append(
            Cancel(
                after_seconds=round(first, 3),
                wire=chance.choice(wires),
                names_task=chance.random() < 0.5,
                wait_seconds=chance.choice((None, None, None, 0.2, 2.0)),
                force_after_seconds=round(chance.uniform(0, 0.3), 3)
                if chance.random() < 0.15
                else None,
                hangs_up_seconds=round(chance.uniform(0, 0.05), 4)
                if chance.random() < 0.1
                else None,
            )
        )
        # Half of the further cancellations are made at the same moment as the one before.
        first += chance.choice((0.0, chance.uniform(0, 0.4)))
    (stopped,) = chance.choices(list(Stopped), _STOPPED_WEIGHTS)
    if stopped is Stopped.FOR_GOOD and chance.random() < _FORCED_SHARE:
        cancels.append(_forced(chance))
    limit_seconds, limit_force_after_seconds = None, None
    if stopped is Stopped.NEVER and chance.random() < _LIMITED_SHARE:
        limit_seconds = round(chance.uniform(*_LIMIT_SECONDS), 3)
        if chance.random() < 0.5:
            limit_force_after_seconds = round(chance.uniform(0, 0.3), 3)
            iterations, iteration_seconds = 1, _LIMITED_ITERATION_SECONDS
    return Round(
        submit_wire=chance.choice(wires),
        iterations=iterations,
        iteration_seconds=iteration_seconds,
        limit_seconds=limit_seconds,
        limit_force_after_seconds=limit_force_after_seconds,
        agent_stopped=stopped,
        stopped_seconds=round(chance.uniform(*_STOPPED_SECONDS), 2)
        if stopped is Stopped.FOR_A_WHILE
        else 0.0,
        cancels=tuple(cancels),
        stop_after_seconds=round(chance.uniform(0, length_seconds), 3)
        if chance.random() < 0.06
        else None,
        control_wire=chance.choice(wires),
    )


def draw_emergencies(chance: random.Random, seconds: float) -> Iterator[Emergency]:
    """Draws the stops of the organization."""
    wires, at = list(Wire), 0.0
    while (at := at + chance.uniform(*_EMERGENCY_SECONDS)) < seconds:
        holds = chance.random() < 0.6
        hold_seconds = round(chance.uniform(*_HOLD_SECONDS), 3) if holds else None
        yield Emergency(
            at_seconds=round(at, 3),
            wire=chance.choice(wires),
            hold_seconds=hold_seconds,
            cancels=holds and chance.random() < 0.5,
            release_wire=chance.choice(wires),
        )
        at += hold_seconds or 0.0


def _forced(chance: random.Random) -> Cancel:
    """A cancellation with `force_after`, by a caller that does not hang up."""
    return Cancel(
        after_seconds=round(chance.uniform(0.1, 1.0), 3),
        wire=chance.choice(list(Wire)),
        names_task=True,
        wait_seconds=None,
        force_after_seconds=round(chance.uniform(0, 1.0), 3),
        hangs_up_seconds=None,
    )
