"""The work that is due, which the fleet controller finds in the database."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from evershell.core.task import Task
from evershell.core.workspace import Workspace, WorkspaceStatus


class Kind(StrEnum):
    """The kinds of work, in the order in which the controller begins them.

    Each page of a scan has work of several kinds (fleet/controller.py).
    """

    # The agent may have exceeded a bound (core/bounds.py). An outage can postpone the bound.
    OVERDUE = "overdue"
    # The lease of the agent has run out.
    LEASE = "lease"
    # The task has reached its `max_duration`.
    TASK_LIMIT = "task_limit"
    # The task is the root of a tree that has reached a limit. Its `usage` field has the usage of
    # the whole tree.
    TREE_LIMIT = "tree_limit"
    # The task is cancelled. No agent has it, because its workspace is still being woken.
    UNSTARTED = "unstarted"
    # The task is cancelled and has not ended.
    CANCELLATION = "cancellation"
    # The workspace is `provisioning`.
    START = "start"
    # The workspace is `stopping`, or it is `deleting` and still has a pod.
    STOP = "stop"
    # The workspace is suspended, and its pod has not ended.
    SUSPENSION = "suspension"
    # The workspace is `deleting` and has no pod.
    REMOVAL = "removal"
    # The workspace must be compared with its pod. The database does not record when this is due:
    # the controller decides (fleet/due.py).
    CHECK = "check"


_OF_STATUS = {
    WorkspaceStatus.PROVISIONING: Kind.START,
    WorkspaceStatus.STOPPING: Kind.STOP,
    WorkspaceStatus.SUSPENDED: Kind.SUSPENSION,
    WorkspaceStatus.DELETING: Kind.STOP,
}


def next_step(workspace: Workspace) -> Kind:
    """The kind of work that the workspace needs next."""
    if workspace.awaits_removal:
        return Kind.REMOVAL
    return _OF_STATUS.get(workspace.status, Kind.CHECK)


# The position of a row among the rows of its kind: when it became due, and the id of its
# task or workspace.
Place = tuple[datetime, str]


@dataclass(frozen=True, slots=True)
class Due:
    """Work that is due: the workspace, and the task that needs the work, if there is one."""

    kind: Kind
    # When the workspace or the task became due. For a tree, when the root began (or else ended, or
    # was submitted), because the time at which the tree reached its limit is not recorded.
    since: datetime
    workspace: Workspace
    task: Task | None = None

    @property
    def place(self) -> Place:
        return self.since, self.workspace.id if self.task is None else self.task.id


@dataclass(frozen=True, slots=True)
class DueWork:
    """The due work that one read has found."""

    # A page of each wanted kind, in the order in which the rows became due.
    rows: Mapping[Kind, Sequence[Due]] = field(default_factory=dict)
    # The number of cancelled tasks that have not ended, and the time of the oldest of their
    # cancellations.
    open_cancellations: int = 0
    oldest_cancellation: datetime | None = None
