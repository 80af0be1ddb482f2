"""A wrapper of the store under test that observes each commit and can inject failures."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any, TypeVar

from evershell.core.change import Change
from evershell.core.errors import Failure, UnavailableError
from evershell.core.event import Event
from evershell.core.ports import (
    Clock,
    Leased,
    RecordedCancellation,
    Store,
)
from evershell.core.task import CancelIntent, Task
from evershell.core.workspace import Workspace
from tests.faults.invariants.record import Record

Returned = TypeVar("Returned")


class Hiccup(Enum):
    """Whether a write fails before or after it takes effect. The caller gets no answer."""

    BEFORE = "before it is done"
    AFTER = "when it is done"


# The methods in which a rule of the state machine can inject a failure.
_WRITES = (
    "record_cancellation",
    "cancel_tasks",
    "transition",
    "renew_lease",
    "hold_org",
    "release_org",
    "remove_workspace",
)


@dataclass(frozen=True, slots=True)
class Removed:
    """A workspace with its tasks and events, as they were before its removal."""

    workspace: Workspace
    tasks: Sequence[Task]
    events: Sequence[Event]


class SpyStore:
    """Implements core.ports.Store: passes each call to another store and observes the call."""

    def __init__(self, store: Store, record: Record, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._record = record
        # How each of the next writes fails, in order.
        self.hiccups: deque[Hiccup] = deque()
        # When a write last failed.
        self.last_hiccup_at: datetime | None = None
        # The number of open calls.
        self._in_flight = 0
        self._at_rest = asyncio.Event()
        self._at_rest.set()
        self.workspace: Workspace | None = None
        # For each epoch, when the last known lease expires.
        self.leases: dict[int, datetime] = {}
        # Each task as it was last seen committed.
        self.tasks: dict[str, Task] = {}
        # The workspace with its tasks and events before its removal; None if it has not been
        # removed.
        self.removed: Removed | None = None

    @property
    def is_at_rest(self) -> bool:
        """Whether no call is open."""
        return self._at_rest.is_set()

    async def rest(self) -> None:
        """Returns once no call is open."""
        await self._at_rest.wait()

    def intent(self, task_id: str) -> CancelIntent | None:
        """Returns the task's recorded intent, as far as it has been observed."""
        task = self.tasks.get(task_id)
        return task.cancel if task is not None else None

    def is_open(self, task_id: str) -> bool:
        """Whether the task may be open: its end has not been observed."""
        task = self.tasks.get(task_id)
        return task is None or not task.status.is_terminal

    async def worker_silences(self) -> Sequence[float]:
        """Reports one worker that is not silent. In these runs, the real store knows no worker."""
        return [0.0]

    def __getattr__(self, name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
        method = getattr(self._store, name)

        async def call(*arguments: Any, **named: Any) -> Any:
            async def make() -> Any:
                last = await self._read_all(*arguments) if name == "remove_workspace" else None
                answer = await method(*arguments, **named)
                if last is not None and answer:
                    self.removed = self.removed or last
                if name == "create_workspace":
                    self.workspace = arguments[0]
                elif name in _WRITES:
                    await self._note_answer(answer)
                return answer

            return await (self._write(make) if name in _WRITES else self._read(make()))

        return call

    async def _read_all(self, workspace_id: str) -> Removed | None:
        workspace = await self._store.get_workspace(workspace_id)
        if workspace is None:
            return None
        tasks = await self._store.list_tasks(workspace_id, None, 1_000)
        events = await self._store.list_events(workspace_id, 0, 10_000)
        self.tasks |= {each.id: each for each in tasks if each.id in self.tasks}
        return Removed(workspace, tasks, events)

    async def _note_answer(self, answer: object) -> None:
        match answer:
            case RecordedCancellation() | Change():
                self._note(answer.workspace, answer.task)
            case Leased():
                self._note(answer.locked.workspace, answer.locked.task)
            case dict():
                # The tasks that a batch has cancelled.
                for task_id in answer:
                    assert self.workspace is not None
                    self._note(
                        await self._store.get_workspace(self.workspace.id),
                        await self._store.get_task(self.workspace.id, task_id),
                    )

    async def _write(self, write: Callable[[], Awaitable[Returned]]) -> Returned:
        hiccup = self.hiccups.popleft() if self.hiccups else None
        if hiccup is not None:
            self.last_hiccup_at = self._clock()
        if hiccup is Hiccup.BEFORE:
            raise UnavailableError("the database is out of reach")
        written = await self._read(write())
        if hiccup is Hiccup.AFTER:
            raise UnavailableError("the database's answer is lost")
        return written

    async def _read(self, call: Awaitable[Returned]) -> Returned:
        self._in_flight += 1
        self._at_rest.clear()
        try:
            return await call
        except Failure:
            raise
        except Exception as error:
            self._record.defects.append(error)
            raise
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self._at_rest.set()

    def _note(self, workspace: Workspace | None, task: Task | None) -> None:
        """Notes these rows unless newer ones are known: replies may not arrive in commit order."""
        known = self.workspace
        if workspace is None or (
            known is not None
            and (workspace.epoch, workspace.last_seq) < (known.epoch, known.last_seq)
        ):
            return
        self.workspace = workspace
        if workspace.lease_expires_at is not None:
            self.leases[workspace.epoch] = workspace.lease_expires_at
        if task is not None:
            self.tasks[task.id] = task
