"""Observes a stack from outside: its rows, processes, connections and logs."""

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import psutil

from tests.faults.long.chaos.evidence import TaskRow
from tests.faults.long.chaos.plan import Stopped
from tests.support.promises.database import read_history
from tests.support.promises.history import History
from tests.support.stack import Stack

# A line of a log with one of these reports a defect.
_DEFECTS = ("unexpected_error", "never retrieved", "Traceback")
_POOL_SIZE = 10
# Besides its pool, each program has a connection that listens, and the fleet controller one that
# holds its leadership.
_LISTENER = _LEADERSHIP = 1


def leaked_connections(stack: Stack, allowed: int) -> Iterator[str]:
    """Yields a line if the stack holds more connections to the database than its pools allow."""
    with stack.database() as connection:
        row = connection.execute(
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        ).fetchone()
    assert row is not None
    if row[0] > allowed:
        yield f"{row[0]} connections to the database, where the pools allow {allowed}"


def allowed_connections(workers: int, controllers: int = 1) -> int:
    """How many connections the workers and the fleet controllers may hold."""
    return (workers + controllers) * (_POOL_SIZE + _LISTENER) + controllers * _LEADERSHIP


def strays(stack: Stack, workspace_ids: Sequence[str]) -> Iterator[str]:
    """Yields processes in idle pods other than their agents, and zombies."""
    for workspace_id in workspace_ids:
        agent, found = stack.agent_pid(workspace_id), stack.pod_processes(workspace_id)
        if found != [agent]:
            yield (f"the idle pod of {workspace_id} runs {found} instead of only its agent {agent}")
    for process in stack.processes():
        with suppress(psutil.Error):
            if process.status() == psutil.STATUS_ZOMBIE:
                yield f"process {process.pid} has ended, and {process.parent()} does not reap it"


def defects(stack: Stack) -> Iterator[str]:
    """Yields the lines of all logs that report a defect."""
    for path in sorted(
        [stack.output, *stack.state_dir.glob("logs/*"), *stack.state_dir.glob("fleet/*/log")]
    ):
        lines = path.read_text(errors="replace").splitlines()
        for index, line in enumerate(lines):
            if any(defect in line for defect in _DEFECTS) and not _is_cancelled_call(lines[index:]):
                yield f"{path.relative_to(stack.state_dir.parent)}: {line[:2000]}"


def _is_cancelled_call(lines: Sequence[str]) -> bool:
    """Whether the first line begins the traceback of a call that ended before it had begun.

    grpcio logs one for such a call.
    """
    trace: Sequence[str] = lines
    if lines[0].startswith("{"):
        with suppress(ValueError):
            trace = str(json.loads(lines[0]).get("exception")).splitlines()
    error = next((line for line in trace[1:] if not line.startswith(" ")), "")
    return trace[0].startswith("Traceback") and error == "asyncio.exceptions.CancelledError"


def history(stack: Stack) -> History:
    """Reads the history of all workspaces, after the last change."""
    with stack.database() as connection:
        return read_history(connection)


def tasks(stack: Stack, history: History) -> dict[str, TaskRow]:
    """Returns the tasks of the history, with what the load knows about them."""
    with stack.database() as connection:
        rows = connection.execute(
            "SELECT id, cancel_reason, "
            "extract(epoch FROM created_at)::float, metadata ->> 'agent_stopped', "
            "extract(epoch FROM started_at)::float, max_duration_seconds, "
            "limit_force_after_seconds IS NOT NULL, metadata ->> 'mark', "
            "(SELECT payload ->> 'work_stopped' FROM events WHERE "
            "(events.task_id, type) = (tasks.id, 'task_completed')) FROM tasks"
        ).fetchall()
    return {
        id_: TaskRow(
            **asdict(history.tasks[id_]),
            cancel_reason=reason,
            submitted_at=submitted_at,
            agent_stopped=agent_stopped or Stopped.NEVER,
            started_at=started_at,
            limit_seconds=limit_seconds,
            is_forced_at_limit=is_forced_at_limit,
            work_stopped=work_stopped,
            last_worked_at=_marked_at(stack.files(history.tasks[id_].workspace_id), mark),
        )
        for (
            id_,
            reason,
            submitted_at,
            agent_stopped,
            started_at,
            limit_seconds,
            is_forced_at_limit,
            mark,
            work_stopped,
        ) in rows
    }


def _marked_at(files: Path, mark: str | None) -> float | None:
    """When a tool last wrote its mark, in seconds since 1970. None if it wrote none."""
    with suppress(OSError):
        return (files / mark).stat().st_mtime if mark else None
    return None
