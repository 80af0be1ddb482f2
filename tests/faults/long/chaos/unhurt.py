"""Judges the workspaces and programs whose failure no fault explains.

The faults of a run say which agents and programs they have hurt, and when. A workspace that failed
at another time is a violation, listed with its reason; so is a program that the supervisor
replaced. The exception is an agent that ran out of time, for its lease or for the end of a forced
task, because the machine was too busy to run the agent or the workers, or because faults kept the
control plane from answering.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from psycopg import Connection

from evershell.agents.shutdown import ExitCode
from evershell.core.bounds import FORCE_MARGIN
from evershell.store.service_clock import STEP_SECONDS
from tests.faults.long.chaos.waits import Waits
from tests.support.stack import Stack

# The time that an agent had was too short if, for this share of it, the agent or a worker (on
# average) waited for a processor, or faults kept the control plane from answering.
_LOST_SHARE = 0.5
_STEP_OF_OUTAGE_SECONDS = 0.1
# How long the controllers may take to notice that an agent has ended.
_NOTICED_SECONDS = 10.0
# How the reason of a failed workspace begins if its agent had not registered.
_NOT_STARTED = (
    "its agent could not be started",
    "its agent ended before it registered",
    "its agent did not register",
)
# The reason of a workspace if the controller notices the end of the lease before the agent ends
# itself.
_LEASE_EXPIRED = "its agent did not renew its lease in time"
# The log events with which the supervisor reports that it ends a program.
_REPLACED = ("program_frozen", "program_over_memory_limit")
# The reason if the pod was ended because its task went on after the force deadline.
_NOT_INTERRUPTED = "its agent did not interrupt the task in time"

_FAILED = """
    SELECT workspace_id, extract(epoch FROM time)::float, payload ->> 'reason'
    FROM events WHERE type = 'workspace_failed'
"""
_UP = """
    SELECT workspace_id, extract(epoch FROM time)::float
    FROM events WHERE type IN ('workspace_provisioned', 'workspace_resumed')
"""


@dataclass(frozen=True, slots=True)
class Hurt:
    """What a fault did to an agent or to a program. Times are in seconds since 1970."""

    # The workspace id of the agent, or the supervisor's name for the program.
    whom: str
    began: float
    ended: float
    # Whether the fault killed the agent or program. If not, it continued after the fault.
    is_fatal: bool = False
    # Whether the fault hurt agents only while they were starting.
    is_of_starts: bool = False


@dataclass(frozen=True, slots=True)
class Failure:
    """A workspace that has lost its agent."""

    workspace_id: str
    at: float
    # The `status_reason` of the workspace.
    reason: str
    # When the workspace's last agent registered; zero if no agent ever did.
    up_at: float

    def is_by(self, hurt: Hurt, lease_seconds: float) -> bool:
        """Whether the hurt explains the failure.

        If the agent was frozen or cut off, its lease may still run out in the time of one lease
        after the fault has ended.
        """
        if hurt.whom != self.workspace_id or hurt.began > self.at + STEP_SECONDS:
            return False
        if hurt.is_of_starts and not self.reason.startswith(_NOT_STARTED):
            return False
        if hurt.is_fatal:
            return hurt.began >= self.up_at - STEP_SECONDS
        return self.at <= hurt.ended + lease_seconds + _NOTICED_SECONDS


def failures(connection: "Connection[Any]", logs: Path) -> list[Failure]:
    """Returns the workspaces that have lost an agent, in chronological order.

    A workspace may lose its agent without failing: a controller may end a pod to force a
    cancellation. These ends are read from the logs of the controllers.
    """
    up = connection.execute(_UP).fetchall()
    lost = set(connection.execute(_FAILED).fetchall())
    lost |= {
        (workspace_id, at, _NOT_INTERRUPTED)
        for workspace_id, at in _ended_for_force(logs)
        if not any(
            each == workspace_id and abs(at - then) < _NOTICED_SECONDS for each, then, _ in lost
        )
    }
    return [
        Failure(
            workspace_id,
            at,
            reason,
            max((then for each, then in up if each == workspace_id and then < at), default=0.0),
        )
        for workspace_id, at, reason in sorted(lost, key=lambda each: each[1])
    ]


def _ended_for_force(logs: Path) -> Iterator[tuple[str, float]]:
    for path in logs.glob("*.log*"):
        for lost in _lines(path, "agent_lost"):
            if lost["reason"].startswith(_NOT_INTERRUPTED):
                yield lost["workspace_id"], _seconds(lost)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict on a workspace whose failure no fault explains."""

    text: str
    # Whether its agent had too little time on this machine and with these faults.
    is_too_short: bool


def judge_workspaces(
    stack: Stack, failed: Sequence[Failure], hurts: Sequence[Hurt], waits: Waits
) -> Iterator[Verdict]:
    """Yields a verdict on each workspace whose failure no fault explains."""
    for each in failed:
        if any(each.is_by(hurt, stack.lease_seconds) for hurt in hurts):
            continue
        text = f"{each.workspace_id} lost its agent at {_time(each.at)}, although nobody hurt it: "
        what, seconds, ran_out_at = _ran_out(stack, each)
        if not what:
            yield Verdict(text + each.reason, is_too_short=False)
            continue
        began = ran_out_at - seconds
        waited = waits.of(each.workspace_id, began, ran_out_at)
        outage = _outage_seconds(len(stack.worker_addresses()), hurts, began, ran_out_at)
        yield Verdict(
            f"{text}{what} of {seconds:g} s ran out at {_time(ran_out_at)}. In this time "
            f"its agent waited {waited.agent:.1f} s for a processor, and a worker "
            f"{waited.worker:.1f} s. For {outage:.1f} s, the database or all workers were hurt",
            is_too_short=max(*waited, outage) >= _LOST_SHARE * seconds,
        )


def _outage_seconds(workers: int, hurts: Sequence[Hurt], began: float, ended: float) -> float:
    """How long faults have hurt the database, or all workers, between two times."""

    def is_hurt(program: str, at: float) -> bool:
        return any(each.whom == program and each.began <= at <= each.ended for each in hurts)

    steps = range(int((ended - began) / _STEP_OF_OUTAGE_SECONDS))
    moments = (began + step * _STEP_OF_OUTAGE_SECONDS for step in steps)
    names = [f"worker-{number}" for number in range(workers)]
    return _STEP_OF_OUTAGE_SECONDS * sum(
        is_hurt("postgres", at) or all(is_hurt(name, at) for name in names) for at in moments
    )


def judge_programs(output: Path, hurts: Sequence[Hurt]) -> Iterator[str]:
    """Yields a line for each program that was replaced although no fault had hurt it."""
    for ended in _lines(output, *_REPLACED):
        name, at = ended["name"], _seconds(ended)
        if not any(
            name.startswith(hurt.whom) and hurt.began <= at <= hurt.ended + _NOTICED_SECONDS
            for hurt in hurts
        ):
            yield f"the supervisor replaced {name}, although nobody hurt it: {ended}"


def _ran_out(stack: Stack, failure: Failure) -> tuple[str, float, float]:
    """What ran out, how long it was, and when it ran out. All empty if nothing ran out."""
    if failure.reason == _NOT_INTERRUPTED:
        return "the time to end a forced task", FORCE_MARGIN.total_seconds(), failure.at
    if failure.reason == _LEASE_EXPIRED:
        return "its lease", stack.lease_seconds, failure.at
    log = stack.state_dir / "fleet" / failure.workspace_id / "log"
    for ending in _lines(log, "agent_ending"):
        at = _seconds(ending)
        if failure.up_at <= at <= failure.at and ending["exit_code"] == ExitCode.LEASE_OVER:
            return "its lease", stack.lease_seconds, at
    return "", 0.0, 0.0


def _lines(path: Path, *events: str) -> Iterator[dict[str, Any]]:
    """Yields the log lines that report one of these events."""
    with suppress(FileNotFoundError):
        for line in path.read_text(errors="replace").splitlines():
            if any(f'"{event}"' in line for event in events):
                # A full disk may have cut off the line.
                with suppress(ValueError):
                    yield json.loads(line)


def _seconds(line: Mapping[str, Any]) -> float:
    """Returns the time of a log line, in seconds since 1970."""
    return datetime.fromisoformat(line["timestamp"]).timestamp()


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
