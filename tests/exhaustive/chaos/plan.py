"""What is done to a stack and asked of it, drawn from a seed before anything starts: the same seed,
the same plan.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum


class Wire(StrEnum):
    """How a call comes to the service."""

    REST = "REST, edge"
    GRPC = "gRPC, edge"
    WORKER_0 = "gRPC, worker 0"
    WORKER_1 = "gRPC, worker 1"


class Kind(StrEnum):
    """What is done to a process, or to a disk."""

    FREEZE = "freeze"
    KILL = "kill"
    # Asked to end, and started again like one that was killed.
    RESTART = "restart"
    # The disk has no free space for a while.
    FILL = "fill"


class Target(StrEnum):
    """To whom it is done."""

    WORKER_0 = "worker-0"
    WORKER_1 = "worker-1"
    FLEET = "fleet"
    AGENT = "agent"
    ENVOY = "envoy"
    # PostgreSQL with all its processes; killed: its first one, which the others notice.
    DATABASE = "database"
    # The process of one connection.
    BACKEND = "backend"
    # The folders of the workspaces, in which tools write, with the agents' logs and what the
    # controller keeps of them.
    PODS = "pods"
    # The logs of all programs but the agents.
    LOGS = "logs"


class Stopped(StrEnum):
    """What a task's tool does to its agent."""

    NEVER = "never"
    FOR_A_WHILE = "for a while"
    FOR_GOOD = "for good"


# How often each is hit, beside the others.
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
# Before the first fault, and between the last one and the end: for the calls alone.
_CALM_SECONDS = 1.0
_FREEZE_SECONDS = (0.2, 3.0)
_FILL_SECONDS = (1.0, 4.0)
# How often the tool of a task does which of Stopped to its agent.
_STOPPED_WEIGHTS = (96, 2, 2)
_STOPPED_SECONDS = (0.3, 3.0)
# Of the tasks whose agent stays stopped, how many are cancelled with force. The others last until
# the lease is over.
_FORCED_SHARE = 0.8
# For the faults of the end, and for the recovery before each.
_SECONDS_BEYOND = 30.0
# A round cannot be over sooner, so a workspace never comes to the end of its rounds.
_SHORTEST_ROUND_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong."""

    at_seconds: float
    kind: Kind
    target: Target
    # Of a freeze, and of a full disk.
    seconds: float
    # Which of several: an agent, a backend. Odd, of the database's disk: not even the next file of
    # its log can be made.
    index: int


@dataclass(frozen=True, slots=True)
class Cancel:
    """One call of CancelTask."""

    # From the submission's answer on.
    after_seconds: float
    wire: Wire
    names_task: bool
    wait_seconds: float | None
    # Counted from the call: when the iteration is broken off; None: never.
    force_after_seconds: float | None
    # When the caller goes away, if the answer has not come by then; None: it stays.
    hangs_up_seconds: float | None


@dataclass(frozen=True, slots=True)
class Round:
    """One task of a workspace, and what is done about it."""

    submit_wire: Wire
    iterations: int
    iteration_seconds: float
    # Whether the first tool stops its agent, and for how long when it is for a while.
    agent_stopped: Stopped
    stopped_seconds: float
    cancels: tuple[Cancel, ...]
    # When the workspace is stopped in this round; it is resumed for the next one.
    stop_after_seconds: float | None
    control_wire: Wire


@dataclass(frozen=True, slots=True)
class Plan:
    """All of it."""

    seed: int
    seconds: float
    faults: tuple[Fault, ...]
    # One after the other at the end, each when all that came before it is over and recovered from.
    last_faults: tuple[Fault, ...]
    # Of each workspace; what is left of them when the time is over is not done.
    rounds: tuple[tuple[Round, ...], ...]


def draw(seed: int, seconds: float, workspaces: int, *, logs_alone_seconds: float = 4.0) -> Plan:
    """The plan of this seed. At the end the disk of the logs is full for that long, and nothing
    else is wrong; 0: it is not.
    """
    chance = random.Random(seed)
    faults = tuple(_faults(chance, seconds, workspaces))
    last = (
        (Fault(0.0, Kind.FILL, Target.LOGS, logs_alone_seconds, 0),) if logs_alone_seconds else ()
    )
    count = int((seconds + _SECONDS_BEYOND) / _SHORTEST_ROUND_SECONDS)
    rounds = tuple(tuple(_round(chance) for _ in range(count)) for _ in range(workspaces))
    return Plan(seed, seconds, faults, last, rounds)


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
    # Now and then a task may come to its own end; some are cancelled as they come to it.
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
        # Half of those that follow come at the same moment.
        first += chance.choice((0.0, chance.uniform(0, 0.4)))
    (stopped,) = chance.choices(list(Stopped), _STOPPED_WEIGHTS)
    if stopped is Stopped.FOR_GOOD and chance.random() < _FORCED_SHARE:
        cancels.append(_forced(chance))
    return Round(
        submit_wire=chance.choice(wires),
        iterations=iterations,
        iteration_seconds=iteration_seconds,
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


def _forced(chance: random.Random) -> Cancel:
    """A cancellation that breaks the iteration off, by a caller who stays."""
    return Cancel(
        after_seconds=round(chance.uniform(0.1, 1.0), 3),
        wire=chance.choice(list(Wire)),
        names_task=True,
        wait_seconds=None,
        force_after_seconds=round(chance.uniform(0, 1.0), 3),
        hangs_up_seconds=None,
    )
