"""What the store locks, and what it commits.

The store locks a workspace with its current task (`Locked`), calls a function of task_lifecycle.py
or workspace_lifecycle.py, and commits the `Change` that it returns in the same transaction:
workspace, task and events, or nothing.

These functions are pure. A function that has nothing to do returns `unchanged`, which makes repeats
harmless. A function that raises Failure commits nothing.
"""

from dataclasses import dataclass, replace
from typing import Self

from evershell.core.audit_entry import AuditEntry
from evershell.core.event import NewEvent, Origin
from evershell.core.hold import Hold
from evershell.core.idempotency_key import FirstCall
from evershell.core.task import Limit, Task
from evershell.core.workspace import Workspace


@dataclass(frozen=True, slots=True)
class Locked:
    """A workspace and its current task, locked together."""

    workspace: Workspace
    # None if the workspace has no task that has not ended.
    task: Task | None
    # The hold of the organization; always None if the store was not asked to read it.
    hold: Hold | None = None

    def require_no_hold(self) -> None:
        """Raises Failure org_on_hold if the organization is on hold."""
        if self.hold is not None:
            raise self.hold.refusal()


@dataclass(frozen=True, slots=True)
class Change:
    """What to commit. `task` is the locked task, a new one, or None if there is none.

    `lease_seconds` renews the agent's lease for that time by the time of the service. A renewal
    never shortens a lease. None leaves the lease as it is in `workspace`.
    """

    workspace: Workspace
    task: Task | None
    events: tuple[NewEvent, ...] = ()
    lease_seconds: float | None = None
    # The limit at which the change cancels the task.
    limit: Limit | None = None
    # The audit log's entry of the call, even if nothing else has changed.
    audit: AuditEntry | None = None
    # The call, if it has an idempotency key, which is stored.
    first_call: FirstCall | None = None

    def writes_rows(self, locked: Locked) -> bool:
        """Whether it changes more than the lease."""
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
    """Commits nothing."""
    return Change(locked.workspace, locked.task)
