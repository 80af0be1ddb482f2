"""What the core requires of other packages. Each port has a contract suite in tests/contracts."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, Protocol

from evershell.core.bounds import Bounds
from evershell.core.caller import Permission
from evershell.core.change import Change, FirstCall, Hold, Locked
from evershell.core.due import DueWork, Kind, Place
from evershell.core.event import AuditEntry, AuditFilter, EventBatch
from evershell.core.task import CancelIntent, CurrentIteration, Task
from evershell.core.task_filter import EVERY_TASK, ListFilter, OrgListFilter, TaskSelection
from evershell.core.validation import Listed
from evershell.core.workspace import AgentCard, Workspace, WorkspaceStatus

Clock = Callable[[], datetime]

# How long the removal of a workspace waits for deliveries of its events to webhooks. A receiver
# gets six attempts in this time.
DELIVERY_WAIT = timedelta(hours=1)

# A heartbeat renews the lease only if less than this share of it remains. With six heartbeats per
# lease, every second heartbeat writes.
RENEW_BELOW_SHARE = 0.8


# The reasons for which a cancellation is refused under the lock. `permission_denied` is not one of
# them, because it may also be decided before the lock is taken.
CancellationRefusal = Literal[
    "workspace_not_found",
    "task_not_found",
    "workspace_provisioning",
    "workspace_stopped",
    "workspace_failed",
    "workspace_deleting",
]
# The results of store/functions/cancellation_outcome.sql: outcomes of CancelTask, and refusals.
CancellationOutcome = (
    Literal[
        "accepted",
        "already_requested",
        "already_finished",
        "no_active_task",
        "permission_denied",
    ]
    | CancellationRefusal
)


@dataclass(frozen=True, slots=True)
class RecordedCancellation:
    """The outcome of record_cancellation, and what it read under the lock."""

    # `accepted` for exactly one call per task: the call that recorded the intent and its event.
    outcome: CancellationOutcome
    # None if the caller's organization has no such workspace.
    workspace: Workspace | None
    # The requested task, or the current one; None if there is no such task.
    task: Task | None
    # The descendants whose intent cancel_tree recorded.
    descendants_cancelled: int = 0

    @property
    def recorded(self) -> bool:
        return self.outcome == "accepted"


@dataclass(frozen=True, slots=True)
class Leased:
    """A workspace as a heartbeat found it."""

    # The workspace and its current task, which were not locked.
    locked: Locked
    # How long the lease still lasts, by the clock of the service; 0 or less if there is no lease.
    lease_seconds: float


@dataclass(frozen=True, slots=True)
class Removed:
    """What a call of remove_old_tasks has removed."""

    tasks: int
    events: int
    # The position of the last event that was removed; `after_seq` if none was.
    last_seq: int


@dataclass(frozen=True, slots=True)
class MatchedTask:
    """A task that matches a filter."""

    workspace_id: str
    task_id: str
    # Whether a cancellation would record something: the intent, or an earlier `force_at`.
    is_pending: bool


@dataclass(frozen=True, slots=True)
class MatchedTasks:
    """The counts of all tasks that match a filter, and some of these tasks."""

    matched: int
    pending: int
    tasks: Sequence[MatchedTask]


# Published instead of a workspace id if some recorded cancellations have not been delivered.
UNDELIVERED = "*"


class Workspaces(Protocol):
    """Creates workspaces, and reads them with their tasks and events."""

    async def create_workspace(
        self,
        workspace: Workspace,
        audit: AuditEntry | None = None,
        first_call: FirstCall | None = None,
        card: AgentCard | None = None,
    ) -> None:
        """Adds a workspace with an empty log, its agent card, the call's audit entry and its key.

        Raises KeyTakenError, like `transition`, and Failure org_on_hold if the organization is on
        hold.
        """

    async def get_workspace(self, workspace_id: str, org_id: str | None = None) -> Workspace | None:
        """A workspace of this organization, or of any organization if it is None.

        Pass `org_id` if the request comes from a caller. A workspace of another organization is
        then not read, so the answer takes as long as for a missing workspace.
        """

    async def get_agent_card(
        self, workspace_id: str, org_id: str | None = None
    ) -> tuple[Workspace | None, AgentCard]:
        """Like get_workspace, with the agent card, which is empty if the workspace has none."""

    async def list_workspaces(
        self, permission: Permission, before_id: str | None, limit: int
    ) -> Listed[Workspace]:
        """The workspaces that the permission covers and that are older than `before_id`.

        Newest first. None for `before_id` starts with the newest.
        """

    async def find_deleted_workspace(self, workspace_id: str, org_id: str) -> Workspace | None:
        """A removed workspace of the organization, as last stored (its status is `deleting`)."""

    async def get_task(self, workspace_id: str, task_id: str) -> Task | None: ...

    async def get_workspace_with_task(
        self, workspace_id: str, task_id: str, org_id: str | None = None
    ) -> tuple[Workspace | None, Task | None]:
        """Like get_workspace, with one of the workspace's tasks, in one round trip.

        Both are read at the same moment. Either is None if it does not exist.
        """

    async def list_tasks(
        self,
        workspace_id: str,
        before_id: str | None,
        limit: int,
        wanted: ListFilter = EVERY_TASK,
    ) -> Listed[Task]:
        """The tasks of the workspace that match and are older than `before_id`, newest first.

        The list may end early, as Listed describes, or because its texts are long. In the second
        case it has at least one task more than fits into MAX_PAGE_CHARACTERS.
        """

    async def count_tasks(self, workspace_id: str, wanted: ListFilter) -> int:
        """The number of tasks that match, among the newest tasks of the workspace.

        Considers at least the newest 1,000 tasks. It may leave out older ones.
        """

    async def list_org_tasks(
        self, permission: Permission, wanted: OrgListFilter, before_id: str | None, limit: int
    ) -> Listed[Task]:
        """The tasks of the organization that match and that the permission covers.

        Paged like list_tasks.
        """

    async def list_events(self, workspace_id: str, after_seq: int, limit: int) -> EventBatch:
        """The workspace's events after `after_seq`, in order.

        The list may end early if the events are large, but if there are events, it has at least
        one. Raises Failure workspace_not_found if there is no such workspace.
        """


class Transitions(Protocol):
    """Changes a workspace and its task."""

    async def transition(
        self,
        workspace_id: str,
        decide: Callable[[Locked], Change],
        org_id: str | None = None,
        parent_task_id: str | None = None,
    ) -> Change | None:
        """Locks the workspace with its current task, and commits and returns what `decide` returns.

        With `org_id`, `decide` also gets the hold of this organization. No other transaction
        commits a hold of this organization before the change is committed. With `parent_task_id` as
        well, `decide` also gets this task of the organization, and its tree is locked: until the
        commit, no other transaction submits a child into the tree or cancels it.

        Returns None if there is no such workspace. If `decide` raises, nothing is committed. Raises
        KeyTakenError, and commits nothing, if the key of the change's `first_call` is taken. If
        another transaction is about to store the key, waits until that transaction has ended.
        `decide` holds the lock, so it must return quickly. It may be called more than once.
        """

    async def renew_lease(
        self, workspace_id: str, epoch: int, lease_seconds: float
    ) -> Leased | None:
        """Renews the lease of the epoch's agent, and returns the workspace with its current task.

        Writes only if less than RENEW_BELOW_SHARE of `lease_seconds` remains. Never waits for a
        lock: while another transaction has locked the workspace, the lease stays as it is. Has no
        effect if the epoch is fenced.

        Returns None if there is no such workspace. The task may have ended after the workspace was
        read.
        """


class Cancellations(Protocol):
    """Records cancellations."""

    async def record_cancellation(
        self,
        permission: Permission,
        workspace_id: str,
        task_id: str | None,
        intent: CancelIntent,
        trace_id: str = "",
        audit: AuditEntry | None = None,
    ) -> RecordedCancellation:
        """Checks and records a cancellation in one transaction and one round trip.

        Records the intent if all of the following is true: the workspace is in the caller's
        organization, the permission covers it, it is up or being woken, the task (`task_id`, or the
        current task) has not ended, and no intent is recorded for the task. If an intent is
        recorded already, only its `force_at` can change, to an earlier one.

        Returns the outcome and what it read under the lock, even if it recorded nothing. The event
        stores `trace_id`, which is empty if there is no trace. The same transaction stores `audit`
        with the outcome, even if nothing is recorded.
        """

    async def cancel_tree(
        self,
        permission: Permission,
        workspace_id: str,
        task_id: str | None,
        intent: CancelIntent,
        trace_id: str = "",
        audit: AuditEntry | None = None,
    ) -> RecordedCancellation:
        """Like record_cancellation, for the task and all its descendants, in one transaction.

        Leaves out descendants that have ended. If a descendant's intent is recorded already, only
        its `force_at` can change, to an earlier one. If the permission does not cover a descendant
        that has not ended, records nothing, and returns the outcome permission_denied with the
        workspace of that descendant. Locks the tree, like `transition`. Publishes what cancel_tasks
        publishes.
        """

    async def match_tasks(
        self, permission: Permission, wanted: TaskSelection, force_at: datetime | None, limit: int
    ) -> MatchedTasks:
        """The tasks that match, have not ended and are covered by the permission.

        Returns at most `limit` of them: first the tasks that a cancellation with this `force_at`
        would change, then the others, the oldest first in both parts.
        """

    async def cancel_tasks(
        self,
        permission: Permission,
        task_ids: Sequence[str],
        intent: CancelIntent,
        trace_id: str = "",
        audit: AuditEntry | None = None,
        *,
        wait: bool = False,
    ) -> Mapping[str, bool]:
        """Records the intent for each of the tasks in one transaction, like record_cancellation.

        Maps each task whose cancellation is recorded to whether this call recorded it. Leaves out
        tasks that have ended, and tasks whose workspace is not up, is not covered or is locked by
        another transaction. With `wait`, which allows only one task, waits for that transaction.
        Publishes the workspaces, and UNDELIVERED, because the fleet controller signals the agents.
        """


class IdempotencyKeys(Protocol):
    """The keys of calls, which are stored with the effect of the first call."""

    async def find_first_call(self, call: FirstCall) -> FirstCall | None:
        """The first call with the same idempotency key as this call, unless the key has expired.

        The previous version stored calls without the owner of their key. Such a call is found too,
        if its request is the same.
        """

    async def record_answer(self, first_call: FirstCall, answer: str) -> str:
        """Stores the answer of the call, unless one is stored. Returns the stored answer."""


class Holds(Protocol):
    """Puts organizations on hold."""

    async def hold_org(self, hold: Hold, audit: AuditEntry | None = None) -> Hold:
        """Stores the hold, unless one exists, and the audit entry. Returns the stored hold.

        Waits for calls that have found no hold and have not committed yet.
        """

    async def release_org(self, org_id: str, audit: AuditEntry | None = None) -> None:
        """Removes the hold of the organization, if there is one. Stores the call's audit entry."""

    async def get_hold(self, org_id: str) -> Hold | None: ...


class AuditLog(Protocol):
    """The entries of calls, which are stored with the effect of the call."""

    async def add_audit_entry(self, audit: AuditEntry | None) -> None:
        """Stores the entry of a call that changed nothing."""

    async def list_audit_entries(
        self, permission: Permission, wanted: AuditFilter, before_id: str | None, limit: int
    ) -> Listed[AuditEntry]:
        """The entries of the organization that match and are older than `before_id`, newest first.

        If the permission covers only the caller's own workspaces, leaves out all other entries.
        """


class Fleet(Protocol):
    """What the fleet controller reads and removes."""

    async def list_wanted_pods(self, after_id: str, limit: int) -> Sequence[Workspace]:
        """The workspaces that have a pod or get one: provisioning, idle, busy, stopping.

        Sorted by id, starting after `after_id`.
        """

    async def due(
        self, now: datetime, wanted: Mapping[Kind, Place | None], limit: int, bounds: Bounds
    ) -> DueWork:
        """At most `limit` rows of each wanted kind, the longest due first.

        `wanted` has the place after which the rows of the kind begin; None stands for the first
        row. Leaves out tasks and trees that are being cancelled already, unless their limit sets an
        earlier force deadline.
        """

    async def lease_seconds_left(self, workspace_id: str | None = None) -> float | None:
        """How long the lease of the workspace still lasts, by the clock of the service.

        Without an id, reads the lease that runs out first among all workspaces with a pod. Negative
        if the lease has run out; None if there is no lease.
        """

    async def worker_silences(self) -> Sequence[float]:
        """How long ago each worker gave its last sign of life, in seconds.

        A worker gives a sign of life every second, from the event loop that answers its calls.
        Leaves out workers that have ended. The time is 0 if the database does not know it.
        """

    async def count_workspaces(self) -> Mapping[WorkspaceStatus, int]:
        """The number of workspaces in each status, in all organizations. Zeros may be absent."""

    async def count_holds(self) -> int: ...

    async def remove_workspace(self, workspace_id: str) -> bool:
        """Removes a workspace that is `deleting` and has no run, and everything that belongs to it.

        Works in transactions of bounded size, and continues where an earlier call ended. The last
        transaction leaves a record for find_deleted_workspace, and publishes the workspace. Audit
        entries and idempotency keys stay.

        Returns False, and removes nothing, while events of the workspace wait for delivery to
        webhooks. This lasts at most DELIVERY_WAIT from the last change of the workspace. Returns
        True if there is no such workspace.
        """

    async def list_old_logs(
        self, before: datetime, after_id: str, limit: int
    ) -> tuple[Sequence[str], str | None]:
        """Finds workspaces whose first event is older than `before`.

        Looks at the first `limit` workspaces after `after_id`. Also returns the `after_id` of the
        next call; None if there are no more workspaces.
        """

    async def remove_old_tasks(
        self, workspace_id: str, before: datetime, after_seq: int, limit: int
    ) -> Removed:
        """Removes tasks that ended before this time, with their events. The oldest go first.

        Stops at the first event of a task that stays. A task stays while a task of its tree has not
        ended, and while one of its events still has to be delivered to a webhook. Before that
        point, also removes the workspace's own events that are older than `before`. The workspace
        keeps its `last_seq`.

        Looks at the first `limit` events after `after_seq`, which is 0 or the `last_seq` that the
        previous call returned. Waits for no lock of a workspace.
        """

    async def oldest_end(self) -> datetime | None:
        """The approximate time of the earliest end of a stored task; None if no task has ended."""


class Store(
    Workspaces, Transitions, Cancellations, IdempotencyKeys, Holds, AuditLog, Fleet, Protocol
):
    """The durable state. Every method raises UnavailableError if the database does not answer."""


class Sealing(Protocol):
    """Encrypts secrets for the database."""

    @property
    def key_id(self) -> bytes:
        """Identifies the key that `seal` uses. Sealed bytes begin with this id."""

    def seal(self, plain: bytes, owner: str) -> bytes:
        """The encrypted bytes. They can be opened only for the same owner."""

    def open(self, sealed: bytes, owner: str) -> bytes:
        """The plain bytes.

        Raises UnavailableError if this process does not have the key, and ValueError if the bytes
        are not authentic.
        """


class Subscriptions(Protocol):
    """Wakes waiting calls when a workspace changes, even if another process changed it."""

    def subscribe(self, workspace_id: str) -> AbstractAsyncContextManager["Subscription"]:
        """Subscribes to the changes that are committed after the context is entered."""


class Subscription(Protocol):
    """One subscription."""

    async def wait(self, timeout_seconds: float) -> bool:
        """Returns once a change was committed since the last return, or after the timeout.

        May also return early without a change. Returns False if the caller must answer now with
        what it has, because this process or the edge is about to end.
        """


class Agents(Protocol):
    """Calls the agent of a workspace. Its answers are hints; the store is authoritative."""

    async def start_task(self, workspace: Workspace, task: Task) -> None:
        """Delivers the task. Raises AgentUnreachableError within 2 s."""

    async def cancel_task(self, workspace: Workspace, task: Task) -> bool:
        """Signals the cancellation. Raises AgentUnreachableError within 2 s.

        Returns False if the agent does not have the task: not yet, or no longer.
        """

    async def current_iteration(self, workspace: Workspace, task: Task) -> CurrentIteration | None:
        """The running calls of the task. Raises AgentUnreachableError within 2 s.

        Returns None if the agent does not report its calls.
        """
