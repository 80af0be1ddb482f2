"""Reads what runs in an organization after each change, for `top`."""

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

from evershell.workspace.v1 import field_limits

from evershell.client import Answer, CallError, Client, Task

# How many workspaces a call can name.
_MOST_IDS = field_limits.LIST_WORKSPACES_WORKSPACE_IDS_MAX


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
        unnamed = list({task.workspace_id for task in tasks} - self._names.keys())
        for first in range(0, len(unnamed), _MOST_IDS):
            some = unnamed[first : first + _MOST_IDS]
            listed = self._client.list_workspaces(workspace_ids=some, page_size=_MOST_IDS)
            self._names |= {each.id: each.name for each in listed}
        rows = tuple(Row(task, self._names.get(task.workspace_id, "")) for task in tasks)
        return Reading(rows, datetime.now(UTC) + self._ahead)

    def _look_at_clock(self, answer: Answer) -> None:
        """Measures how far the clock of the service is ahead of this machine's clock."""
        date = answer.metadata.get("date")
        if isinstance(date, str):
            self._ahead = parsedate_to_datetime(date) - datetime.now(UTC)


class Readings:
    """Reads what runs whenever it may have changed. Passes on each reading, or why it failed."""

    def __init__(
        self,
        client: Client,
        running: Running,
        on_reading: Callable[[Reading], None],
        on_problem: Callable[[str], None],
        *,
        least_seconds: float = 2.0,
        settle_seconds: float = 0.5,
    ) -> None:
        """`least_seconds` is the least time between two reads.

        A read is `settle_seconds` after a change, so that changes that come together are read
        together.
        """
        self._client = client
        self._running = running
        self._on_reading = on_reading
        self._on_problem = on_problem
        self._least_seconds = least_seconds
        self._settle_seconds = settle_seconds
        # There may be something to read.
        self._is_due = threading.Event()
        # It is read without a pause.
        self._is_urgent = threading.Event()
        self._has_ended = threading.Event()

    def start(self) -> None:
        for run in (self._follow, self._read):
            threading.Thread(target=run, name="evershell-top", daemon=True).start()

    def end(self) -> None:
        self._has_ended.set()
        self.hurry()

    def hurry(self) -> None:
        """Reads now."""
        self._is_due.set()
        self._is_urgent.set()

    def _follow(self) -> None:
        """Causes a read after each event, and with each heartbeat of the stream of events.

        The heartbeats find what changes without an event, such as the phase of an iteration. A
        lost stream also causes a read: if the service does not answer, the read says so.
        """
        while not self._has_ended.is_set():
            with suppress(CallError):
                for _ in self._client.watch_organization(reconnect_for=0):
                    self._is_due.set()
            self._is_due.set()
            self._has_ended.wait(self._least_seconds)

    def _read(self) -> None:
        while not self._has_ended.is_set():
            self._is_due.clear()
            self._is_urgent.clear()
            try:
                self._on_reading(self._running.read())
            except CallError as error:
                self._on_problem(str(error))
            self._is_urgent.wait(self._least_seconds)
            self._is_due.wait()
            self._is_urgent.wait(self._settle_seconds)
