"""The input of the promises: the tasks and the logs of some workspaces."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

TERMINAL = frozenset({"completed", "failed", "cancelled", "delivery_failed"})


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRecord:
    """A row of the table of tasks. Times are seconds since 1970."""

    id: str
    workspace_id: str
    status: str
    iterations: int = 0
    forced: bool = False
    completed_at: float | None = None
    cancel_requested_at: float | None = None
    force_at: float | None = None


@dataclass(frozen=True, slots=True)
class EventRecord:
    """An entry of the log."""

    workspace_id: str
    seq: int
    type: str
    task_id: str | None = None
    # Set for `task_completed`.
    status: str | None = None
    forced: bool = False
    iterations: int = 0
    # Set for `iteration_completed`.
    number: int = 0
    is_model_call_interrupted: bool = False
    is_tool_call_interrupted: bool = False
    has_tool_call: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """Tasks and complete logs, read in one transaction."""

    tasks: Mapping[str, TaskRecord] = field(default_factory=dict)
    events: Sequence[EventRecord] = ()
    # The `last_seq` of each workspace's row, by workspace id.
    last_seqs: Mapping[str, int] = field(default_factory=dict)
    # The answers that promised a cancellation, as pairs of task id and description of the answer.
    promised: Sequence[tuple[str, str]] = ()

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
