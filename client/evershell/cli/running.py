"""Reads repeatedly what runs in an organization, for `top`."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

from evershell.client import Answer, Client, Task


@dataclass(frozen=True)
class Row:
    """A task that has not ended."""

    task: Task
    # The name of the workspace; empty if the workspace has no name.
    name: str

    @property
    def began(self) -> datetime | None:
        """When the task started or, if it has not started, was submitted. None if not known."""
        return self.task.started_at or self.task.created_at


@dataclass(frozen=True)
class Reading:
    """What ran at one moment."""

    rows: tuple[Row, ...]
    # That moment, by the clock of the service.
    at: datetime


class Running:
    """Reads the tasks that have not ended, as one list for the whole organization."""

    def __init__(self, client: Client) -> None:
        self._client = client.with_options(on_answer=self._look_at_clock)
        # The names of workspaces by id. A name never changes.
        self._names: dict[str, str] = {}
        self._ahead = timedelta(0)

    def read(self) -> Reading:
        """Reads the tasks that run now. Raises CallError."""
        tasks = list(self._client.list_tasks(active=True, page_size=200))
        if any(task.workspace_id not in self._names for task in tasks):
            listed = self._client.list_workspaces(page_size=200)
            self._names = {each.id: each.name for each in listed}
        rows = tuple(Row(task, self._names.get(task.workspace_id, "")) for task in tasks)
        return Reading(rows, datetime.now(UTC) + self._ahead)

    def _look_at_clock(self, answer: Answer) -> None:
        """Measures how far the clock of the service is ahead of this machine's clock."""
        date = answer.metadata.get("date")
        if isinstance(date, str):
            self._ahead = parsedate_to_datetime(date) - datetime.now(UTC)
