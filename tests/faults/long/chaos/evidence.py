"""The evidence of a run, which the verdict checks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tests.faults.long.chaos.answers import Answer
from tests.faults.long.chaos.faults import Hit
from tests.faults.long.chaos.plan import Stopped
from tests.support.promises.history import EventRecord, History, TaskRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRow(TaskRecord):
    """A task in the database, with what the load knows of it."""

    cancel_reason: str | None = None
    started_at: float | None = None
    # The limit of its duration, and whether it is forced at the limit.
    limit_seconds: float | None = None
    is_forced_at_limit: bool = False
    submitted_at: float = 0.0
    agent_stopped: str = Stopped.NEVER
    # What its end says about the work: `yes` or `unknown`. None before the end.
    work_stopped: str | None = None
    # When one of its tools was last seen at work. None if no tool shows it.
    last_worked_at: float | None = None

    @property
    def limit_reached_at(self) -> float | None:
        """When it reached the limit of its duration. None if it ended before, or has no limit."""
        if self.started_at is None or self.limit_seconds is None:
            return None
        due = self.started_at + self.limit_seconds
        return due if self.completed_at is None or due <= self.completed_at else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """The input of the verdict."""

    tasks: Mapping[str, TaskRow] = field(default_factory=dict)
    events: Sequence[EventRecord] = ()
    # The `last_seq` of each workspace's row, by workspace id.
    last_seqs: Mapping[str, int] = field(default_factory=dict)
    answers: Sequence[Answer] = ()
    hits: Sequence[Hit] = ()
    # Violations observed during the run: stray processes, leaked connections, defects in logs,
    # workspaces that did not come back.
    seen: Sequence[str] = ()

    @property
    def history(self) -> History:
        """The input of the promises."""
        return History(
            tasks=self.tasks,
            events=self.events,
            last_seqs=self.last_seqs,
            promised=[
                (task_id, f"{answer.outcome or answer.slug} was answered to {answer}")
                for answer in self.answers
                for task_id in answer.promised_task_ids
            ],
        )
