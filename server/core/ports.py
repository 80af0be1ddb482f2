"""What the core needs of the world. The Store has a contract suite (tests/store), run on every
implementation.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from server.core.caller import Permission
from server.core.event import Event
from server.core.lifecycle import Change, Session
from server.core.task import CancelIntent, Task
from server.core.workspace import Workspace, WorkspaceStatus

Clock = Callable[[], datetime]


@dataclass(frozen=True, slots=True)
class RecordedCancellation:
    """What record_cancellation found, and whether it recorded the intent."""

    # None when the caller's organization has no such workspace.
    workspace: Workspace | None
    # The task asked for, or the current one; None when there is no such task.
    task: Task | None
    # True for exactly one call a task: the one that wrote the intent and its event.
    recorded: bool


class Store(Protocol):
    """The durable state. Every method raises UnavailableError when the database does not answer."""

    async def record_cancellation(
        self, permission: Permission, workspace_id: str, task_id: str | None, intent: CancelIntent
    ) -> RecordedCancellation:
        """Checks and records a cancellation in one transaction and one round trip.

        It records exactly when the workspace is in the caller's organization, the permission covers
        it, it is up, the task asked for (or the current one) has not ended, and no intent is
        recorded for it yet. Whatever it did, it returns what it saw under the lock; for an intent
        that stood already, only an earlier `force_at` is taken over.
        """

    async def transition(
        self, workspace_id: str, decide: Callable[[Session], Change]
    ) -> Change | None:
        """Locks the workspace with its current task, commits what `decide` returns, and returns it;
        None: no such workspace.

        What `decide` raises is raised, and nothing is committed. It must be quick, and may be
        called again.
        """

    async def create_workspace(self, workspace: Workspace) -> None:
        """Adds a workspace, with an empty log."""

    async def get_workspace(self, workspace_id: str) -> Workspace | None:
        """One workspace, of whichever organization."""

    async def list_workspaces(
        self, permission: Permission, before_id: str | None, limit: int
    ) -> Sequence[Workspace]:
        """The organization's workspaces that the permission covers, newest first, behind
        `before_id`.
        """

    async def get_task(self, workspace_id: str, task_id: str) -> Task | None:
        """One task of the workspace."""

    async def list_tasks(
        self, workspace_id: str, before_id: str | None, limit: int
    ) -> Sequence[Task]:
        """The workspace's tasks, newest first, behind `before_id`."""

    async def list_events(self, workspace_id: str, after_seq: int, limit: int) -> Sequence[Event]:
        """The workspace's log behind `after_seq`, in order."""

    async def list_wanted_pods(self) -> Sequence[Workspace]:
        """All workspaces that have, or are to have, a pod: provisioning, idle, busy, stopping."""

    async def list_cancellations(self) -> Sequence[tuple[Workspace, Task]]:
        """All tasks that have not ended and are to be cancelled, each with its workspace."""

    async def count_workspaces(self) -> Mapping[WorkspaceStatus, int]:
        """How many workspaces of all organizations are in each status; a status that none is in may
        be absent.
        """


class Wakeups(Protocol):
    """Tells that a workspace has changed, on whichever process it was committed."""

    def subscribe(self, workspace_id: str) -> AbstractAsyncContextManager["Wakeup"]:
        """Every change committed from here on wakes it, until the context is left."""


class Wakeup(Protocol):
    """One subscription."""

    async def wait(self, timeout_seconds: float) -> bool:
        """Returns once something was committed since the last return, or after the timeout, or now
        and then for no reason.

        False: this process, or the edge through which the call came, is about to end, and whoever
        waits is to answer with what there is.
        """


class Agents(Protocol):
    """Reaches the agent of a workspace. What it says is a hint; the truth is in the store."""

    async def start_task(self, workspace: Workspace, task: Task) -> None:
        """Hands the task over. Raises AgentUnreachableError within 2 s."""

    async def cancel_task(self, workspace: Workspace, task: Task) -> bool:
        """Signals the cancellation; False: the agent does not have the task (yet, or any more).

        Raises AgentUnreachableError within 2 s.
        """
