"""The plan of a run: its faults and calls. drawing.py draws it from a seed."""

from dataclasses import dataclass
from enum import StrEnum


class Wire(StrEnum):
    """How a call reaches the service."""

    REST = "REST, edge"
    GRPC = "gRPC, edge"
    WORKER_0 = "gRPC, worker 0"
    WORKER_1 = "gRPC, worker 1"


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
    # The network between two groups of hosts (tests/faults/long/hosts).
    EDGE_WORKERS = "edge-workers"
    WORKERS_DATABASE = "workers-database"
    CONTROLLERS_DATABASE = "controllers-database"
    WORKERS_AGENTS = "workers-agents"
    CONTROLLERS_AGENTS = "controllers-agents"


class Stopped(StrEnum):
    """What a task's tool does to its agent."""

    NEVER = "never"
    FOR_A_WHILE = "for a while"
    FOR_GOOD = "for good"


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of a plan."""

    at_seconds: float
    kind: Kind
    target: Target
    # How long a freeze, a full disk or a cut lasts.
    seconds: float
    # Selects one of several agents, backends or hosts. For the disk of the database, an odd index
    # means that the database also has to begin the next file of its write-ahead log.
    index: int


_BATCH_WIRES = (Wire.REST, Wire.WORKER_1)


@dataclass(frozen=True, slots=True)
class Cancel:
    """One call of CancelTask, or of CancelTasks for the tasks of one workspace."""

    # Counted from the answer to the submission.
    after_seconds: float
    wire: Wire
    names_task: bool
    wait_seconds: float | None
    # When the iteration is broken off, counted from the call. None for never.
    force_after_seconds: float | None
    # When the caller hangs up if it has no answer, counted from the call. None for never.
    hangs_up_seconds: float | None

    @property
    def is_batch(self) -> bool:
        """Whether the call is CancelTasks: if it names no task, does not wait, and by its wire."""
        return not self.names_task and self.wait_seconds is None and self.wire in _BATCH_WIRES


@dataclass(frozen=True, slots=True)
class Round:
    """One task of a workspace, and the calls about it."""

    submit_wire: Wire
    iterations: int
    iteration_seconds: float
    # Whether the first tool stops its agent. `stopped_seconds` is used for FOR_A_WHILE only.
    agent_stopped: Stopped
    stopped_seconds: float
    # The limit of its duration, and its `force_after`. None for none.
    limit_seconds: float | None
    limit_force_after_seconds: float | None
    cancels: tuple[Cancel, ...]
    # When the workspace is stopped in this round. It is resumed for the next one.
    stop_after_seconds: float | None
    control_wire: Wire


@dataclass(frozen=True, slots=True)
class Emergency:
    """A call of CancelTasks for the whole organization, or a hold of it."""

    at_seconds: float
    wire: Wire
    # How long the organization is on hold. None: CancelTasks without a hold.
    hold_seconds: float | None
    # Whether HoldOrg cancels what runs.
    cancels: bool
    release_wire: Wire


@dataclass(frozen=True, slots=True)
class Plan:
    """All faults and calls of a run."""

    seed: int
    seconds: float
    faults: tuple[Fault, ...]
    # Inflicted one after another at the end, each after the recovery from the fault before it.
    last_faults: tuple[Fault, ...]
    # The rounds of each workspace. Those that are left when the time is over are not played.
    rounds: tuple[tuple[Round, ...], ...]
    # Played one after another.
    emergencies: tuple[Emergency, ...]
