"""What the store locks, and what it commits.

The store locks a workspace with its current task (`Locked`), calls a function of task_lifecycle.py
or workspace_lifecycle.py, and commits the `Change` that the function returns. All of this is one
transaction, which commits workspace, task and events, or nothing.

These functions are pure. A function that has nothing to do returns `unchanged`, which makes repeats
harmless. A function that raises Failure commits nothing.
"""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Self

from evershell.core.caller import Caller
from evershell.core.errors import Failure
from evershell.core.event import AuditEntry, NewEvent, Origin
from evershell.core.task import Limit, Task
from evershell.core.task_tree import Parent
from evershell.core.workspace import Workspace

MAX_KEY_CHARACTERS = 255
# The maximum length of the key with which an agent submits a child.
MAX_AGENT_KEY_CHARACTERS = 64
# How long an idempotency key is kept after its first call.
KEY_KEPT = timedelta(hours=24)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """A hold in force: until it is released, the organization cannot get new tasks or new agents.

    The fields describe the call that set it.
    """

    org_id: str
    # The id of the user or of the API key.
    held_by: str
    held_since: datetime
    reason: str

    def refusal(self) -> Failure:
        because = f": {self.reason}" if self.reason else ""
        since = self.held_since.astimezone(UTC).replace(tzinfo=None)
        message = (
            f"{self.held_by} put your organization on hold at "
            f"{since.isoformat(timespec='seconds')}Z{because}. New tasks and agents are "
            "refused until the hold is released. Cancelling, stopping and reading work."
        )
        return Failure(
            "org_on_hold",
            message,
            org_id=self.org_id,
            held_by=self.held_by,
            held_since=f"{since.isoformat()}Z",
            hold_reason=self.reason,
        )


class KeyTakenError(Exception):
    """An earlier call has stored the idempotency key. This call has committed nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstCall:
    """A caller's first call with an idempotency key.

    Later calls with the key are repeats of this call until KEY_KEPT has passed.
    """

    org_id: str
    # `<credential kind>:<actor id>`, a line break, and the key that the caller chose.
    key: str
    fingerprint: bytes
    called_at: datetime
    # The workspace that the call created, or in which it created the task; otherwise empty.
    workspace_id: str
    task_id: str = ""
    # SubmitTask: the status of the task in the answer, or the slug of the error; empty until the
    # call has an answer. CreateWebhook: the webhook, without its secret. CancelTasks and
    # ResumeWorkspaces: the result. CreateWorkspace: empty, because its answer follows from the
    # workspace.
    answer: str = ""

    @property
    def unowned_key(self) -> str:
        """The key as the previous version of the service stores it: without the caller.

        There, all callers of the organization share the key.
        """
        return self.key.partition("\n")[2]

    @property
    def chosen_key(self) -> str:
        """The key as its caller chose it."""
        return self.key.rpartition("\n")[2]

    @property
    def expires_before(self) -> datetime:
        """Keys whose first call was made at this time or earlier have expired."""
        return self.called_at - KEY_KEPT


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """The key of a call, as its caller chose it."""

    key: str
    # Equal for equal requests to the same method.
    fingerprint: bytes

    def first_call(
        self, caller: Caller, called_at: datetime, workspace_id: str, task_id: str = ""
    ) -> FirstCall:
        """What to store if the call turns out to be the caller's first one with this key."""
        return FirstCall(
            org_id=caller.org_id,
            key=f"{caller.credential_kind}:{caller.actor_id}\n{self.key}",
            fingerprint=self.fingerprint,
            called_at=called_at,
            workspace_id=workspace_id,
            task_id=task_id,
        )


@dataclass(frozen=True, slots=True)
class Locked:
    """A workspace and its current task, locked together."""

    workspace: Workspace
    # The current task, which has not ended; None if there is none.
    task: Task | None
    # The hold of the organization; always None if the store was not asked to read it.
    hold: Hold | None = None
    # The parent of the task that is being submitted; None if the organization has no such task, or
    # if the store was not asked to read it.
    parent: Parent | None = None

    def require_no_hold(self) -> None:
        if self.hold is not None:
            raise self.hold.refusal()


@dataclass(frozen=True, slots=True)
class Change:
    """What to commit. `task` is the locked task, a new one, or None if there is none.

    `lease_seconds` renews the agent's lease to last this long from now, by the clock of the
    service. A renewal never shortens a lease. None leaves the lease as it is in `workspace`.
    """

    workspace: Workspace
    task: Task | None
    events: tuple[NewEvent, ...] = ()
    lease_seconds: float | None = None
    # The limit that the task has reached, if the change cancels the task for this reason.
    limit: Limit | None = None
    # The call's entry in the audit log. It is stored even if nothing else has changed.
    audit: AuditEntry | None = None
    # The call to store with its idempotency key, if it has one.
    first_call: FirstCall | None = None

    def writes_rows(self, locked: Locked) -> bool:
        """Whether the change writes the workspace, its task or events."""
        is_same = (self.workspace, self.task) == (locked.workspace, locked.task)
        return bool(self.events) or not is_same

    def caused_by(self, origin: Origin) -> Self:
        """The same change, with the call that caused it."""
        events = tuple(replace(event, origin=origin) for event in self.events)
        audit = origin.audit
        if audit is not None and self.task is not None:
            audit = replace(audit, task_id=self.task.id)
        return replace(self, events=events, audit=audit)


def unchanged(locked: Locked) -> Change:
    """A change that commits nothing."""
    return Change(locked.workspace, locked.task)
