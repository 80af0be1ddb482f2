"""The evidence of a run, from which the verdict is reached."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tests.exhaustive.chaos.answers import Answer
from tests.exhaustive.chaos.faults import Hit
from tests.exhaustive.chaos.plan import Stopped


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRow:
    """A task in the database. Times in seconds since 1970."""

    id: str
    workspace_id: str
    status: str
    iteration_seconds: float = 0.0
    cancel_requested_at: float | None = None
    cancel_reason: str | None = None
    completed_at: float | None = None
    forced: bool = False
    force_at: float | None = None
    submitted_at: float = 0.0
    agent_stopped: str = Stopped.NEVER

    @property
    def late_seconds(self) -> float | None:
        """Seconds from the natural end of the cancelled iteration to the end of the task."""
        if self.cancel_requested_at is None or self.completed_at is None:
            return None
        return max(0.0, self.completed_at - self.cancel_requested_at - self.iteration_seconds)

    @property
    def overdue_seconds(self) -> float | None:
        """Seconds from its force deadline to its end."""
        if self.force_at is None or self.completed_at is None:
            return None
        return max(0.0, self.completed_at - self.force_at)


@dataclass(frozen=True, slots=True)
class EventRow:
    """An entry of a log in the database."""

    workspace_id: str
    seq: int
    type: str
    task_id: str | None = None
    # Of a task's end.
    status: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that is judged."""

    tasks: Mapping[str, TaskRow] = field(default_factory=dict)
    events: Sequence[EventRow] = ()
    # The `last_seq` of each workspace's row, by workspace id.
    last_seqs: Mapping[str, int] = field(default_factory=dict)
    answers: Sequence[Answer] = ()
    hits: Sequence[Hit] = ()
    # Found while it ran: processes, connections, lines of logs, workspaces that did not come back.
    seen: Sequence[str] = ()
