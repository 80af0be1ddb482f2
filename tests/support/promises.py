"""The service's promises about tasks and their logs, in one place for all kinds of tests.

The promises hold for every task and every log, at any moment and after any fault. Each function
checks one promise, and yields one line for each violation.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from psycopg import Connection
from psycopg.rows import class_row

from evershell.store.service_clock import STEP_SECONDS

TERMINAL = frozenset({"completed", "failed", "cancelled", "delivery_failed"})


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRecord:
    """A row of the tasks table. Times are in seconds since 1970."""

    id: str
    workspace_id: str
    status: str
    iterations: int = 0
    forced: bool = False
    completed_at: float | None = None
    cancel_requested_at: float | None = None
    force_at: float | None = None
    # The number of model calls in the task's usage, except for a call that was reported for an open
    # iteration.
    model_calls: int = 0
    has_open_iteration: bool = False
    iteration_lost: bool = False


@dataclass(frozen=True, slots=True)
class EventRecord:
    """An event in the log of a workspace."""

    workspace_id: str
    seq: int
    type: str
    task_id: str | None = None
    # These fields are set for `task_completed`.
    status: str | None = None
    forced: bool = False
    iterations: int = 0
    iteration_lost: bool = False
    # These fields are set for `iteration_completed`.
    number: int = 0
    is_model_call_interrupted: bool = False
    is_tool_call_interrupted: bool = False
    has_tool_call: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """The tasks and logs of workspaces, read in one transaction."""

    tasks: Mapping[str, TaskRecord] = field(default_factory=dict)
    events: Sequence[EventRecord] = ()
    # The `last_seq` of each workspace, by workspace id.
    last_seqs: Mapping[str, int] = field(default_factory=dict)
    # The answers that promised a cancellation, each as the task's id and a description.
    promised: Sequence[tuple[str, str]] = ()
    # Whether the oldest events of a log may have been removed.
    removes_old: bool = False
    # How far the clocks of the programs that wrote the times may differ.
    clocks_differ_seconds: float = 0.0

    def log(self, workspace_id: str) -> list[EventRecord]:
        """Returns the workspace's events, in order."""
        found = (event for event in self.events if event.workspace_id == workspace_id)
        return sorted(found, key=lambda event: event.seq)

    def logs_by_task(self) -> Iterator[tuple[TaskRecord, list[EventRecord]]]:
        """Yields each task with its events, in order."""
        logs: dict[str, list[EventRecord]] = {task_id: [] for task_id in self.tasks}
        for event in sorted(self.events, key=lambda event: event.seq):
            if event.task_id in logs:
                logs[event.task_id].append(event)
        yield from ((self.tasks[task_id], log) for task_id, log in logs.items())


_TASKS = """
SELECT id, workspace_id, status, iterations, forced,
       extract(epoch FROM completed_at)::float AS completed_at,
       extract(epoch FROM cancel_requested_at)::float AS cancel_requested_at,
       extract(epoch FROM cancel_force_at)::float AS force_at,
       model_calls, open_iteration IS NOT NULL AS has_open_iteration, iteration_lost
FROM tasks WHERE %(id)s::text IS NULL OR workspace_id = %(id)s
"""
_EVENTS = """
SELECT workspace_id, seq, type, task_id, payload ->> 'status' AS status,
       coalesce((payload ->> 'forced')::boolean, false) AS forced,
       coalesce((payload ->> 'iterations')::integer, 0) AS iterations,
       coalesce((payload ->> 'iteration_lost')::boolean, false) AS iteration_lost,
       coalesce((payload ->> 'number')::integer, 0) AS number,
       coalesce(payload #>> '{model_call,status}' = 'interrupted', false)
           AS is_model_call_interrupted,
       coalesce(payload #>> '{tool_call,result,status}' = 'interrupted', false)
           OR payload @? '$.tool_calls[*].result.status ? (@ == "interrupted")'
           AS is_tool_call_interrupted,
       coalesce(payload -> 'tool_call' <> 'null', false) AS has_tool_call
FROM events WHERE %(id)s::text IS NULL OR workspace_id = %(id)s
"""
_LAST_SEQS = """
SELECT id, last_seq FROM workspaces WHERE %(id)s::text IS NULL OR id = %(id)s
"""


def read_history(
    connection: "Connection[Any]",
    workspace_id: str | None = None,
    promised: Sequence[tuple[str, str]] = (),
    *,
    removes_old: bool = False,
) -> History:
    """Reads the history of one workspace, or of all workspaces.

    The connection must not be in a transaction.
    """
    parameters = {"id": workspace_id}
    with (
        connection.transaction(),
        connection.cursor(row_factory=class_row(TaskRecord)) as tasks,
        connection.cursor(row_factory=class_row(EventRecord)) as events,
    ):
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        return History(
            tasks={task.id: task for task in tasks.execute(_TASKS, parameters)},
            events=events.execute(_EVENTS, parameters).fetchall(),
            last_seqs=dict(connection.execute(_LAST_SEQS, parameters).fetchall()),
            promised=promised,
            removes_old=removes_old,
            # A new worker's clock may be wrong by half the round trip of its first reading of the
            # database clock.
            clocks_differ_seconds=STEP_SECONDS,
        )


def logs_have_no_gaps(history: History) -> Iterator[str]:
    for workspace_id, last_seq in history.last_seqs.items():
        seqs = [event.seq for event in history.log(workspace_id)]
        first_seq = seqs[0] if history.removes_old and seqs else 1
        if seqs != list(range(first_seq, last_seq + 1)):
            yield f"the log of {workspace_id} is not {first_seq} to {last_seq} without gaps: {seqs}"


def promised_tasks_end_cancelled(history: History) -> Iterator[str]:
    for task_id, answer in history.promised:
        status = history.tasks[task_id].status if task_id in history.tasks else "missing"
        if status == "missing" or (status in TERMINAL and status != "cancelled"):
            yield f"{task_id}: {answer}, but its status is {status}"


def tasks_begin_once(history: History) -> Iterator[str]:
    for task, log in history.logs_by_task():
        types = [event.type for event in log]
        is_first = types[:1] == ["task_submitted"] and types.count("task_submitted") == 1
        if not is_first or types.count("task_started") > 1:
            yield f"{task.id} did not begin once: {types}"


def tasks_end_once(history: History) -> Iterator[str]:
    for task, log in history.logs_by_task():
        types = [event.type for event in log]
        ends = [event.status for event in log if event.type == "task_completed"]
        if ends != ([task.status] if task.status in TERMINAL else []):
            yield f"{task.id} is {task.status}, but its ends in the log are {ends}"
        elif ends and types[-1] != "task_completed":
            yield f"{task.id} has events after its end: {types}"


def ends_agree_with_their_task(history: History) -> Iterator[str]:
    for task, log in history.logs_by_task():
        for event in log:
            if event.type != "task_completed":
                continue
            if event.forced != task.forced:
                yield f"{task.id}: forced is {task.forced}, but {event.forced} in its log"
            if event.iteration_lost != task.iteration_lost:
                yield f"{task.id}: iteration_lost is {task.iteration_lost}, but not in its log"


def each_iteration_counts_once(history: History) -> Iterator[str]:
    """Each iteration counts as one model call; a lost iteration may add one.

    A task that has ended has no open iteration.
    """
    for task in history.tasks.values():
        most = task.iterations + task.iteration_lost
        if not task.iterations <= task.model_calls <= most:
            yield f"{task.id} has {task.iterations} iterations, but {task.model_calls} model calls"
        if task.status in TERMINAL and task.has_open_iteration:
            yield f"{task.id} has ended, but an iteration of it is open"


def iterations_are_numbered(history: History) -> Iterator[str]:
    for task, log in history.logs_by_task():
        numbers = [event.number for event in log if event.type == "iteration_completed"]
        if numbers != list(range(1, task.iterations + 1)):
            yield f"{task.id} has {task.iterations} iterations, but its log has {numbers}"
        ends = [event.iterations for event in log if event.type == "task_completed"]
        if any(iterations != task.iterations for iterations in ends):
            yield f"{task.id} has {task.iterations} iterations, but its end reports {ends}"


def requests_are_recorded_once(history: History) -> Iterator[str]:
    for task, log in history.logs_by_task():
        types = [event.type for event in log]
        is_asked = task.cancel_requested_at is not None
        if types.count("task_cancel_requested") != is_asked:
            yield f"{task.id} was {'not ' * (not is_asked)}asked to end, but its log has {types}"
        if task.status == "cancelled" and not is_asked:
            yield f"{task.id} is cancelled, but no caller asked for it"


def one_iteration_follows_a_request(history: History) -> Iterator[str]:
    """After a cancellation, at most one iteration completes; none if the task had not started."""
    for task, log in history.logs_by_task():
        types = [event.type for event in log]
        if "task_cancel_requested" not in types:
            continue
        at = types.index("task_cancel_requested")
        further = types[at:].count("iteration_completed")
        if further > ("task_started" in types[:at]):
            yield f"{task.id} completed {further} iterations after its cancellation: {types}"


def force_is_due(history: History) -> Iterator[str]:
    """A task is ended by force only after its force deadline."""
    for task in history.tasks.values():
        latest = (task.completed_at or 0) + history.clocks_differ_seconds
        if task.forced and (task.force_at is None or latest < task.force_at):
            yield f"{task.id} was forced at {task.completed_at}, but force_at is {task.force_at}"


def only_force_interrupts(history: History) -> Iterator[str]:
    """Only force interrupts an iteration.

    No iteration follows an interrupted one. An interrupted model call has no tool call.
    """
    for task, log in history.logs_by_task():
        iterations = [event for event in log if event.type == "iteration_completed"]
        for event in iterations:
            if event.is_model_call_interrupted and event.has_tool_call:
                yield f"{task.id}: iteration {event.number} has a tool call but no full model call"
            if not (event.is_model_call_interrupted or event.is_tool_call_interrupted):
                continue
            if event is not iterations[-1]:
                yield f"{task.id}: iteration {event.number} was interrupted, but others follow"
            if task.status in TERMINAL and not task.forced:
                yield f"{task.id}: iteration {event.number} was interrupted, but not by force"


PROMISES = (
    logs_have_no_gaps,
    promised_tasks_end_cancelled,
    tasks_begin_once,
    tasks_end_once,
    ends_agree_with_their_task,
    each_iteration_counts_once,
    iterations_are_numbered,
    requests_are_recorded_once,
    one_iteration_follows_a_request,
    force_is_due,
    only_force_interrupts,
)


def violations(history: History) -> list[str]:
    """Returns one line for each violation of any promise."""
    return [violation for promise in PROMISES for violation in promise(history)]
