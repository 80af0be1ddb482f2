"""The faults of a run, drawn from a seed before anything starts."""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What a fault does to a process, a disk or a network."""

    FREEZE = "freeze"
    KILL = "kill"
    # SIGTERM. The supervisor starts the program again, as after a kill.
    RESTART = "restart"
    # The disk has no free space for a while.
    FILL = "fill"
    # The network loses everything between two groups of hosts for a while, or everything from the
    # first group to the second, or from the second to the first.
    CUT = "cut"
    CUT_THERE = "cut there"
    CUT_BACK = "cut back"
    # A freeze of a worker, during which all tasks are cancelled with force through the other one.
    FORCE = "freeze at a force"
    # Other programs of the machine take its processors for a while.
    LOAD = "load"
    # The primary is lost, its standby takes its place, and another standby joins.
    FAIL_OVER = "fail over"
    # A wall clock is an hour off for a while.
    STEP = "step"
    # `evershell restart` of another version.
    ROLL = "roll"


class Target(StrEnum):
    """What a fault hits."""

    WORKER_0 = "worker-0"
    WORKER_1 = "worker-1"
    FLEET = "fleet"
    AGENT = "agent"
    ENVOY = "envoy"
    # PostgreSQL. A freeze stops all its processes. A kill ends the first, and the others follow.
    DATABASE = "database"
    # The process of PostgreSQL that serves one connection.
    BACKEND = "backend"
    # The disk of the pods' folders, where tools write, with the agents' logs and the controller's
    # records.
    PODS = "pods"
    # The disk of the logs of all programs except agents.
    LOGS = "logs"
    PROCESSORS = "processors"
    # All programs except agents and databases.
    PROGRAMS = "programs"
    # The wall clocks of all programs of a kind.
    CLOCK_OF_WORKERS = "clock of workers"
    CLOCK_OF_CONTROLLERS = "clock of controllers"
    CLOCK_OF_DATABASE = "clock of the database"
    # The network between two groups of hosts (tests/faults/long/hosts).
    EDGE_WORKERS = "edge-workers"
    WORKERS_DATABASE = "workers-database"
    CONTROLLERS_DATABASE = "controllers-database"
    WORKERS_AGENTS = "workers-agents"
    CONTROLLERS_AGENTS = "controllers-agents"


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of a plan."""

    at_seconds: float
    kind: Kind
    target: Target
    # How long a freeze, a full disk, a cut, a load or a step lasts.
    seconds: float
    # Selects one of several agents, backends, controllers or hosts. For the disk of the database,
    # an odd index means that the database also has to begin the next file of its write-ahead log.
    # For a load, the number of processes that are always ready to run.
    index: int


@dataclass(frozen=True, slots=True)
class Plan:
    """The faults of a run, and how long it lasts."""

    seed: int
    seconds: float
    workspaces: int
    faults: tuple[Fault, ...]
    # The processes that take the processors during the whole run.
    load: int = 0


Weights = Mapping[tuple[Kind, Target], int]
# The relative frequency of each fault.
WEIGHTS: Weights = {
    **{
        (kind, target): 4
        for kind in (Kind.FREEZE, Kind.KILL, Kind.RESTART)
        for target in (Target.WORKER_0, Target.WORKER_1)
    },
    (Kind.FORCE, Target.WORKER_0): 3,
    (Kind.FORCE, Target.WORKER_1): 3,
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
    (Kind.LOAD, Target.PROCESSORS): 3,
}
_MEAN_SECONDS_BETWEEN_FAULTS = 0.9
# A machine with this load during the whole run gets half as many faults. A killed program takes
# longer to come back, and with a fault during each recovery, the outage would never end.
_HALVING_LOAD = 4
# The time without faults before the first fault, and after the last one.
_CALM_SECONDS = 1.0
# Some freezes at a force are longer than the supervisor waits for a program that does not answer.
_SECONDS = {
    Kind.FREEZE: ((0.2, 3.0),),
    Kind.FORCE: ((3.0, 10.0), (16.0, 20.0)),
    Kind.FILL: ((1.0, 4.0),),
    Kind.LOAD: ((3.0, 10.0),),
    Kind.STEP: ((1.0, 10.0),),
    # They last as long as they take.
    **dict.fromkeys((Kind.KILL, Kind.RESTART, Kind.FAIL_OVER, Kind.ROLL), ((0.0, 0.0),)),
}
_LOADS = (10, 50)


def draw(
    seed: int, seconds: float, workspaces: int, load: int = 0, weights: Weights = WEIGHTS
) -> Plan:
    """Draws the plan of a seed.

    With a load during the whole run there are fewer faults, and none of them is a load.
    """
    weights = {
        pair: weight for pair, weight in weights.items() if not load or Kind.LOAD not in pair
    }
    mean_seconds = _MEAN_SECONDS_BETWEEN_FAULTS * (1 + load / _HALVING_LOAD)
    faults = _faults(random.Random(seed), seconds, workspaces, weights, mean_seconds)
    return Plan(seed, seconds, workspaces, tuple(faults), load)


def _faults(
    chance: random.Random,
    seconds: float,
    workspaces: int,
    weights: Weights,
    mean_seconds: float,
) -> Iterator[Fault]:
    at = _CALM_SECONDS
    while (at := at + chance.expovariate(1 / mean_seconds)) < seconds - _CALM_SECONDS:
        ((kind, target),) = chance.choices(list(weights), list(weights.values()))
        lasts = round(chance.uniform(*chance.choice(_SECONDS[kind])), 3)
        index = chance.randint(*_LOADS) if kind is Kind.LOAD else chance.randrange(workspaces)
        yield Fault(round(at, 3), kind, target, lasts, index)
