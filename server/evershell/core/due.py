"""What is due: the work that the fleet controller finds in the database."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from evershell.core.task import Task
from evershell.core.workspace import Workspace


class Kind(StrEnum):
    """The kinds of work. The controller begins them in this order (fleet/work.py)."""

    # The agent has exceeded a bound of core/bounds.py, if no outage postpones it.
    OVERDUE = "overdue"
    # The lease of the agent has run out.
    LEASE = "lease"
    # The task has reached its `max_duration`.
    TASK_LIMIT = "task_limit"
    # The tree of the task, which is a root, has reached a limit. `usage` of the task is the usage
    # of the tree.
    TREE_LIMIT = "tree_limit"
    # The task is cancelled, and the workspace is being woken for it, so no agent has the task.
    UNSTARTED = "unstarted"
    # The task is cancelled and has not ended.
    CANCELLATION = "cancellation"
    # The workspace is `provisioning`.
    START = "start"
    # The workspace is `stopping`, or `deleting` with a pod.
    STOP = "stop"
    # The workspace is suspended, and its pod has not ended.
    SUSPENSION = "suspension"
    # The workspace is `deleting` and has no pod.
    REMOVAL = "removal"
    # The pod of the workspace has to be compared with it. Only the controller knows when.
    CHECK = "check"


# The position of a row within its kind.
Place = tuple[datetime, str]


@dataclass(frozen=True, slots=True)
class Due:
    """A workspace that is due, and the task because of which it is, if there is one."""

    kind: Kind
    # Since when. For a tree, the start of its root, because it is not recorded when the usage has
    # reached a limit.
    since: datetime
    workspace: Workspace
    task: Task | None = None

    @property
    def place(self) -> Place:
        return self.since, self.workspace.id if self.task is None else self.task.id


@dataclass(frozen=True, slots=True)
class DueWork:
    """What was due at a scan."""

    # The rows of each kind, the longest due first.
    rows: Mapping[Kind, Sequence[Due]] = field(default_factory=dict)
    # The number of cancelled tasks that have not ended, and the first of the times at which a
    # cancellation was recorded.
    open_cancellations: int = 0
    oldest_cancellation: datetime | None = None
