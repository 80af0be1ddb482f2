"""What runs in an organization, read again and again for `top`."""

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

from evershell.client import (
    Answer,
    Client,
    Task,
    TaskNotFoundError,
    Workspace,
    WorkspaceNotFoundError,
)

# The tasks that one reading fetches. The list of workspaces says what runs, but not since when.
_TASKS_EACH_TIME = 100
_CALLS_AT_ONCE = 8


@dataclass(frozen=True)
class Row:
    """A task that has not ended, and its workspace."""

    workspace: Workspace
    task: Task

    @property
    def began(self) -> datetime | None:
        """When the task was started or, before that, submitted; None if it is not known."""
        return self.task.started_at or self.task.created_at


@dataclass(frozen=True)
class Reading:
    """What runs now."""

    rows: tuple[Row, ...]
    # More than the rows, until each task was fetched once.
    count: int
    # By the clock of the service.
    at: datetime


class Running:
    """Reads what runs. Fetches at most 100 tasks each time, those on the screen first."""

    def __init__(self, client: Client) -> None:
        self._client = client.with_options(on_answer=self._look_at_clock)
        self._tasks: dict[str, Task] = {}
        # When each task was fetched: the number of the reading.
        self._fetched: dict[str, int] = {}
        self._readings = 0
        self._ahead = timedelta(0)

    def read(self, shown: Collection[str] = ()) -> Reading:
        """Reads it again. `shown` has the ids of the tasks on the screen. Raises CallError."""
        self._readings += 1
        busy = {
            each.current_task_id: each
            for each in self._client.list_workspaces(page_size=200)
            if each.current_task_id
        }
        for ended in self._tasks.keys() - busy.keys():
            del self._tasks[ended], self._fetched[ended]
        chosen = sorted(
            busy,
            key=lambda id_: (id_ in self._tasks, id_ not in shown, self._fetched.get(id_, 0)),
        )[:_TASKS_EACH_TIME]
        with ThreadPoolExecutor(_CALLS_AT_ONCE) as executor:
            for task in executor.map(lambda id_: self._fetch(busy[id_], id_), chosen):
                if task is not None:
                    self._tasks[task.id] = task
                    self._fetched[task.id] = self._readings
        rows = tuple(
            Row(busy[id_], task) for id_, task in self._tasks.items() if not task.has_ended
        )
        return Reading(rows, len(busy), datetime.now(UTC) + self._ahead)

    def _fetch(self, workspace: Workspace, task_id: str) -> Task | None:
        # It may have been deleted since.
        with suppress(TaskNotFoundError, WorkspaceNotFoundError):
            return self._client.get_task(workspace.id, task_id)
        return None

    def _look_at_clock(self, answer: Answer) -> None:
        """Measures how far the clock of the service is ahead of the one of this machine."""
        date = answer.metadata.get("date")
        if isinstance(date, str):
            self._ahead = parsedate_to_datetime(date) - datetime.now(UTC)
