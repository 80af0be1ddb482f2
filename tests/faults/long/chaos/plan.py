"""The faults of a run, which are drawn from a seed before anything starts."""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What a fault does to a process, a disk or a network."""

    FREEZE = "freeze"
    KILL = "kill"
    # The program gets SIGTERM. The supervisor starts it again, as after a kill.
    RESTART = "restart"
    # The disk has no free space for a while.
    FILL = "fill"
    # For a while, the network loses everything between two groups of hosts.
    CUT = "cut"
    # Like CUT, but the network loses only what the first group sends to the second group.
    CUT_THERE = "cut there"
    # Like CUT, but the network loses only what the second group sends to the first group.
    CUT_BACK = "cut back"
    # A worker freezes, and meanwhile all tasks are cancelled with force through the other worker.
    FORCE = "freeze at a force"
    # Other programs keep the machine's processors busy for a while.
    LOAD = "load"
    # The primary is lost, its standby replaces it, and another standby joins.
    FAIL_OVER = "fail over"
    # A wall clock is an hour off for a while.
    STEP = "step"
    # `evershell restart` with the programs of a later version, or of this version.
    ROLL = "roll"


class Target(StrEnum):
    """What a fault hits."""

    WORKER_0 = "worker-0"
    WORKER_1 = "worker-1"
    FLEET = "fleet"
    AGENT = "agent"
    ENVOY = "envoy"
    # PostgreSQL. A freeze stops all its processes. A kill ends the first process, and the others
    # then end too.
    DATABASE = "database"
    # A process of PostgreSQL that serves one connection.
    BACKEND = "backend"
    # Two disks that fill up together: one with the pods' folders, where tools write, and one with
    # the agents' logs and the controller's records.
    PODS = "pods"
    # The disk with the logs of all programs except agents.
    LOGS = "logs"
    PROCESSORS = "processors"
    # All programs except agents and databases.
    PROGRAMS = "programs"
    # The wall clocks of all workers, of all controllers, or of the database.
    CLOCK_OF_WORKERS = "clock of workers"
    CLOCK_OF_CONTROLLERS = "clock of controllers"
    CLOCK_OF_DATABASE = "clock of the database"
    # The network between two groups of hosts, such as edge and workers (tests/faults/long/hosts).
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
    # Selects one of several agents, backends, controllers or hosts. For the disk of the database:
    # if the index is odd, the database also must begin the next file of its write-ahead log. For
    # a load: the number of processes that are always ready to run.
    index: int


@dataclass(frozen=True, slots=True)
class Plan:
    """The faults of a run, and how long it lasts."""

    seed: int
    seconds: float
    workspaces: int
    faults: tuple[Fault, ...]
    # The number of processes that keep the processors busy during the whole run.
    load: int = 0


Weights = Mapping[tuple[Kind, Target], int]
# How frequent each fault is, relative to the others.
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
# A load of this size during the whole run halves the number of faults. Under a load, a killed
# program takes longer to come back; if each recovery met another fault, the outage would never end.
_HALVING_LOAD = 4
# The time without faults at the start and at the end of the run.
_CALM_SECONDS = 1.0
# For each kind of fault that `draw` can choose, the ranges from which its duration is drawn. Some
# FORCE freezes are longer than the supervisor waits for a program that does not answer.
_SECONDS = {
    Kind.FREEZE: ((0.2, 3.0),),
    Kind.FORCE: ((3.0, 10.0), (16.0, 20.0)),
    Kind.FILL: ((1.0, 4.0),),
    Kind.LOAD: ((3.0, 10.0),),
    Kind.STEP: ((1.0, 10.0),),
    # No duration is drawn for these faults: each of them ends by itself.
    **dict.fromkeys((Kind.KILL, Kind.RESTART, Kind.FAIL_OVER, Kind.ROLL), ((0.0, 0.0),)),
}
_LOADS = (10, 50)


def draw(
    seed: int, seconds: float, workspaces: int, load: int = 0, weights: Weights = WEIGHTS
) -> Plan:
    """Draws a plan from `seed`.

    With a load during the whole run, there are fewer faults, and no fault adds a load.
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
