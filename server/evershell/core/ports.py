"""The interfaces that other packages implement for the core (contracts: tests/contracts)."""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, Protocol

from evershell.core.bounds import Bounds
from evershell.core.caller import Permission
from evershell.core.change import Change, FirstCall, Hold, Locked
from evershell.core.due import DueWork, Kind, Place
from evershell.core.event import AuditEntry, AuditFilter, Event, EventBatch, LogEntry, LogScope
from evershell.core.task import CancelIntent, CurrentIteration, Task
from evershell.core.task_filter import EVERY_TASK, ListFilter, OrgListFilter, TaskSelection
from evershell.core.validation import Listed
from evershell.core.workspace import AgentCard, Workspace, WorkspaceStatus
from evershell.core.workspace_filter import WorkspaceSelection

Clock = Callable[[], datetime]

# The longest time for which the removal of a workspace waits for deliveries of its events to
# webhooks. A delivery that keeps failing is attempted about seven times in this time.
DELIVERY_WAIT = timedelta(hours=1)

# A heartbeat renews the lease only if less than this share of it remains. With six heartbeats per
# lease, only every other heartbeat writes to the database.
RENEW_BELOW_SHARE = 0.8


# The reasons for which a cancellation is refused under the lock of the workspace. Does not include
# `permission_denied`, which may also be decided before the lock is taken.
CancellationRefusal = Literal[
    "workspace_not_found",
    "task_not_found",
    "workspace_provisioning",
    "workspace_stopped",
    "workspace_failed",
    "workspace_deleting",
]
# What store/functions/cancellation_outcome.sql returns: an outcome of CancelTask, or a refusal.
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
    """The outcome of record_cancellation, with the rows that it read under the lock."""

    # `accepted` for at most one call per task: the call that recorded the intent and its event.
    outcome: CancellationOutcome
    # None if the caller's organization has no such workspace.
    workspace: Workspace | None
    # The task that the call named, or the current task if it named none; None if it does not exist.
    task: Task | None
    # The number of descendants for which cancel_tree recorded an intent.
    descendants_cancelled: int = 0

    @property
    def recorded(self) -> bool:
        return self.outcome == "accepted"


@dataclass(frozen=True, slots=True)
class Leased:
    """The workspace of a heartbeat, and how long its lease lasts."""

    # The workspace and its current task, read without a lock.
    locked: Locked
    # How long the lease still lasts, by the clock of the service. Negative if it has expired, and
    # minus infinity if there is no lease.
    lease_seconds: float


@dataclass(frozen=True, slots=True)
class Removed:
    """What a call of remove_old_tasks has removed."""

    tasks: int
    events: int
    # The `seq` of the last removed event; `after_seq` if no event was removed.
    last_seq: int


@dataclass(frozen=True, slots=True)
class MatchedTask:
    """A task that matches a filter."""

    workspace_id: str
    task_id: str
    # Whether a cancellation would change the task: record the intent, or an earlier `force_at`.
    is_pending: bool


@dataclass(frozen=True, slots=True)
class MatchedTasks:
    """How many tasks match a filter, how many of them are pending, and some of the tasks."""

    matched: int
    pending: int
    tasks: Sequence[MatchedTask]


# Published in place of a workspace id if agents must still be signalled to cancel their tasks.
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
        """Stores a workspace, its agent card, and the call's audit entry and key, but no events.

        Raises KeyTakenError, like `transition`, and Failure org_on_hold if the organization is on
        hold.
        """

    async def get_workspace(self, workspace_id: str, org_id: str | None = None) -> Workspace | None:
        """The workspace; None if it does not exist or belongs to another organization.

        If `org_id` is None, the workspace may belong to any organization. Pass `org_id` if the
        request comes from a caller. A workspace of another organization is then not read, so the
        answer takes as long as for a missing workspace.
        """

    async def get_agent_card(
        self, workspace_id: str, org_id: str | None = None
    ) -> tuple[Workspace | None, AgentCard]:
        """Like get_workspace, but also returns the agent card, which may be empty."""

    async def list_workspaces(
        self,
        permission: Permission,
        before_id: str | None,
        limit: int,
        workspace_ids: Sequence[str] = (),
    ) -> Listed[Workspace]:
        """The workspaces that the permission covers and that are older than `before_id`.

        The newest workspace comes first. If `before_id` is None, begins with the newest of all. If
        `workspace_ids` is not empty, only these workspaces.
        """

    async def match_failed(
        self, permission: Permission, wanted: WorkspaceSelection, limit: int
    ) -> tuple[int, Sequence[str]]:
        """Counts the failed workspaces that match and that the permission covers.

        Counts all of them. The second result has the ids of the first `limit`, the oldest first.
        """

    async def find_deleted_workspace(self, workspace_id: str, org_id: str) -> Workspace | None:
        """A removed workspace of the organization, as last stored (its status is `deleting`)."""

    async def get_task(self, workspace_id: str, task_id: str) -> Task | None: ...

    async def get_workspace_with_task(
        self, workspace_id: str, task_id: str, org_id: str | None = None
    ) -> tuple[Workspace | None, Task | None]:
        """Like get_workspace, but also returns a task of the workspace, in the same round trip.

        Reads both at the same moment. If one of them does not exist, returns None in its place.
        """

    async def list_tasks(
        self,
        workspace_id: str,
        before_id: str | None,
        limit: int,
        wanted: ListFilter = EVERY_TASK,
    ) -> Listed[Task]:
        """The matching tasks of the workspace that are older than `before_id`, newest first.

        The list may end early, as Listed describes. It also ends early once its texts are longer
        than MAX_PAGE_CHARACTERS. It then has at least one task more than a page can have.
        """

    async def count_tasks(self, workspace_id: str, wanted: ListFilter) -> int:
        """The number of matching tasks among the newest tasks of the workspace.

        Considers at least the newest 1,000 tasks, and may leave out older ones.
        """

    async def list_org_tasks(
        self, permission: Permission, wanted: OrgListFilter, before_id: str | None, limit: int
    ) -> Listed[Task]:
        """The matching tasks of the organization that the permission covers.

        The list begins and ends like the list of list_tasks.
        """

    async def list_events(self, workspace_id: str, after_seq: int, limit: int) -> EventBatch:
        """The workspace's events after `after_seq`, in order.

        Returns fewer events than `limit` if they are large, but at least one if there is one.
        Raises Failure workspace_not_found if there is no such workspace.
        """

    async def list_last_events(
        self, workspace_id: str, before_seq: int, limit: int
    ) -> tuple[Sequence[Event], bool]:
        """The workspace's events before `before_seq`, newest first, and whether there are others.

        The second result says whether there are events before the last one of the first result.
        Returns fewer events than `limit` if they are large, but at least one if there is one.
        """


class LogEnd(Protocol):
    """The end of the log of the events of all workspaces, for one reader that follows it."""

    # A settled position: each event up to it is visible to all later reads, or never will be.
    position: int

    async def advance(self) -> bool:
        """Moves to the next settled position that can be found at once.

        Returns whether no event follows it. Raises UnavailableError, also after a fail-over: the
        log may then end before `position`.
        """


class EventLog(Protocol):
    """The log of the events of all workspaces.

    Each event takes a position. The positions of a workspace are in the order of `seq`. A position
    without an event belongs to a transaction that is open or was rolled back, or its event was
    removed. Events that the previous version has written during an upgrade have no position.
    """

    async def last_position(self) -> int:
        """The last position that any transaction has taken; at least 1.

        Before the first event, it takes a position, so 0 is the position of no event and no end.
        """

    async def find_log_end(self) -> "LogEnd":
        """Finds the end of the log when the call began.

        Waits for the transactions that are writing events. Raises UnavailableError if one of them
        stays open for seconds.
        """

    async def list_log_events(
        self,
        scopes: Collection[LogScope],
        after: int,
        until: int,
        limit: int,
        *,
        at_once: bool = False,
    ) -> tuple[Sequence[LogEntry], int]:
        """The events of the scopes after the position `after`, in order, and how far they go.

        `until` is a settled position. All events of the scopes up to the second result were
        returned. It is at most `until`, and less if there are more than `limit` events, if they are
        large, or if many positions are left. Leaves out events of workspaces that do not exist any
        more.

        Few such reads run at a time. With `at_once`, the read does not wait for others.
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
        """Locks the workspace with its current task. Commits and returns what `decide` returns.

        With `org_id`, `decide` also gets the hold of this organization, and no other transaction
        can commit a hold of the organization before the change is committed. With `parent_task_id`
        as well, `decide` also gets this task, if the organization has it, and the tree of the task
        is locked: until the commit, no other transaction can submit a child into the tree, or
        cancel the tree.

        Returns None if there is no such workspace. If `decide` raises, nothing is committed. Raises
        KeyTakenError, and commits nothing, if the key of the change's `first_call` is taken. If
        another transaction is about to store the key, waits until that transaction has ended.
        `decide` runs under the lock, so it must return quickly. It may be called more than once.
        """

    async def transition_many(
        self,
        workspace_ids: Sequence[str],
        decide: Callable[[Locked], Change | None],
        org_id: str,
        audit: AuditEntry | None = None,
        first_call: Callable[[Sequence[Change]], FirstCall | None] | None = None,
    ) -> Sequence[Change]:
        """Like `transition` with `org_id`, for workspaces without a task, in one transaction.

        Returns the changes. Leaves out a workspace if `decide` returns None, if it has a current
        task, if it does not belong to the organization, or if another transaction has locked it: a
        transaction with several locks waits for none.

        Also stores the audit entry, and the key that `first_call` returns for the changes, if any.
        """

    async def renew_lease(
        self, workspace_id: str, epoch: int, lease_seconds: float
    ) -> Leased | None:
        """Renews the lease of the agent with this epoch. Returns the workspace and its task.

        Writes only if less than RENEW_BELOW_SHARE of `lease_seconds` remains. Never waits for a
        lock: if another transaction has locked the workspace, the lease stays as it is. The lease
        also stays as it is if the epoch is fenced.

        Returns None if there is no such workspace. The task is read after the workspace, so it may
        have ended in between.
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

        Records the intent if all of the following are true: the workspace is in the caller's
        organization, the permission covers the workspace, the workspace is up or being woken, the
        task (`task_id`, or the current task) has not ended, and no intent is recorded for the task.
        If an intent is recorded already, only its `force_at` can change, to an earlier time.

        Whatever the outcome is, returns it with the rows that were read under the lock, and stores
        `audit` with the outcome in the same transaction. The event of the cancellation has the
        `trace_id`, which is empty if there is no trace.
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
        its `force_at` can change, to an earlier time. If the permission does not cover a descendant
        that has not ended, records no intent, and returns the outcome permission_denied with the
        workspace of that descendant. Locks the tree, like `transition`. Publishes the workspaces,
        and UNDELIVERED if there are descendants, like cancel_tasks.
        """

    async def match_tasks(
        self, permission: Permission, wanted: TaskSelection, force_at: datetime | None, limit: int
    ) -> MatchedTasks:
        """Counts and lists the matching tasks that have not ended and that the permission covers.

        Counts all of them, but lists at most `limit`: first the tasks that a cancellation with this
        `force_at` would change, then the others. Each of the two parts begins with its oldest task.
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
        first_call: Callable[[Mapping[str, bool]], FirstCall] | None = None,
    ) -> Mapping[str, bool]:
        """Records the intent for each of the tasks in one transaction, like record_cancellation.

        Returns the tasks whose cancellation is recorded. Maps each of them to True if this call
        recorded it, and to False if an earlier call did. Leaves out tasks that have ended, and
        tasks whose workspace is ending, is not covered or is locked by another transaction. With
        `wait`, waits for that transaction instead, but then accepts only one task. Publishes the
        workspaces, and UNDELIVERED so that the fleet controller signals the agents.

        With `first_call`, the same transaction stores the key that `first_call` returns for the
        result. Raises KeyTakenError, and commits nothing, like `transition`.
        """


class IdempotencyKeys(Protocol):
    """Idempotency keys. Each is stored in the transaction of the first call that uses it."""

    async def find_first_call(self, call: FirstCall) -> FirstCall | None:
        """The first call with the same idempotency key as this call, unless the key has expired.

        The previous version stored keys without their owner. A call with such a key is found too,
        if its request is the same.
        """

    async def record_answer(self, first_call: FirstCall, answer: str) -> str:
        """Stores the answer of the call, unless it has one already. Returns the stored answer."""


class Holds(Protocol):
    """Puts organizations on hold."""

    async def hold_org(self, hold: Hold, audit: AuditEntry | None = None) -> Hold:
        """Stores the audit entry, and the hold unless one exists. Returns the stored hold.

        First waits for the transactions that have found no hold and have not ended yet.
        """

    async def release_org(self, org_id: str, audit: AuditEntry | None = None) -> None:
        """Removes the hold of the organization, if there is one. Stores the call's audit entry."""

    async def get_hold(self, org_id: str) -> Hold | None: ...


class AuditLog(Protocol):
    """The audit log. If a call changes something, its entry is stored in the same transaction."""

    async def add_audit_entry(self, audit: AuditEntry | None) -> None:
        """Stores the entry of a call that changed nothing."""

    async def list_audit_entries(
        self, permission: Permission, wanted: AuditFilter, before_id: str | None, limit: int
    ) -> Listed[AuditEntry]:
        """The entries of the organization that match and are older than `before_id`, newest first.

        If the permission covers only the caller's own workspaces, returns only entries about them.
        """


class Fleet(Protocol):
    """What the fleet controller reads and removes."""

    async def list_wanted_pods(self, after_id: str, limit: int) -> Sequence[Workspace]:
        """The workspaces that have or will get a pod: provisioning, idle, busy or stopping.

        Sorted by id, beginning after `after_id`.
        """

    async def due(
        self, now: datetime, wanted: Mapping[Kind, Place | None], limit: int, bounds: Bounds
    ) -> DueWork:
        """At most `limit` rows of each wanted kind, in the order in which they became due.

        `wanted` maps each kind to the place after which its rows begin, or to None to begin with
        the first row. A task or a tree that has reached a limit is left out if it is already being
        cancelled, unless the limit sets an earlier force deadline.
        """

    async def lease_seconds_left(self, workspace_id: str | None = None) -> float | None:
        """How long the lease of the workspace still lasts, by the clock of the service.

        Without an id, reads the lease that runs out first among all workspaces with a pod. Negative
        if the lease has run out; None if there is no lease.
        """

    async def worker_silences(self) -> Sequence[float]:
        """How long ago each worker gave its last sign of life, in seconds.

        A worker gives a sign of life every second, from the event loop that answers its calls.
        Leaves out workers that have ended. Returns 0 for a worker if the database does not know
        its last sign of life.
        """

    async def count_workspaces(self) -> Mapping[WorkspaceStatus, int]:
        """Counts the workspaces of all organizations by status. May leave out zeros."""

    async def count_holds(self) -> int: ...

    async def remove_workspace(self, workspace_id: str) -> bool:
        """Removes a workspace that is `deleting` and has no pod, and everything that belongs to it.

        Works in transactions of bounded size, and continues where an earlier call ended. The last
        transaction stores a record for find_deleted_workspace, and its commit is published. Audit
        entries and idempotency keys stay.

        Returns False, and removes nothing, while events of the workspace wait for delivery to
        webhooks, but no longer than DELIVERY_WAIT after the last change of the workspace. Returns
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
        """Removes the workspace's oldest events, with the tasks to which they belong.

        Stops at the first event that must stay. An event of a task stays if the task did not end
        earlier than `before`, if a task of the same tree has not ended, or if one of the task's
        events still has to be delivered to a webhook. An event of the workspace itself stays if it
        is not older than `before`, or if such an event still has to be delivered. The workspace
        keeps its `last_seq`.

        Looks at the first `limit` events after `after_seq`, which is 0 or the `last_seq` that the
        previous call returned. Does not wait for the lock of the workspace.
        """

    async def oldest_end(self) -> datetime | None:
        """Approximately when the earliest end of a stored task was; None if no task has ended."""


class Store(
    Workspaces,
    EventLog,
    Transitions,
    Cancellations,
    IdempotencyKeys,
    Holds,
    AuditLog,
    Fleet,
    Protocol,
):
    """The durable state. Every method raises UnavailableError if the database does not answer."""


class Sealing(Protocol):
    """Encrypts secrets for the database."""

    @property
    def key_id(self) -> bytes:
        """Identifies the key that `seal` uses. Sealed bytes begin with this id."""

    def seal(self, plain: bytes, owner: str) -> bytes:
        """Returns the encrypted bytes. Only `open` with the same owner can decrypt them."""

    def open(self, sealed: bytes, owner: str) -> bytes:
        """Returns the decrypted bytes.

        Raises UnavailableError if this process does not have the key, and ValueError if the bytes
        are not authentic.
        """


class Subscriptions(Protocol):
    """Wakes waiting calls when a workspace changes, even if another process changed it."""

    def subscribe(self, workspace_id: str | None) -> AbstractAsyncContextManager["Subscription"]:
        """Subscribes to the workspace's changes that are committed after the context is entered.

        With None, subscribes to no changes: the waits end early only if the process is about to
        end.
        """


class Subscription(Protocol):
    """One subscription."""

    async def wait(self, timeout_seconds: float) -> bool:
        """Waits until a change has been committed since the last return, or until the timeout.

        May also return early without a change. Returns False if this process or the edge is about
        to end: the caller must then answer at once with what it has. Otherwise returns True.
        """


class Agents(Protocol):
    """Calls the agent of a workspace. An agent's answer is a hint; the store is authoritative."""

    async def start_task(self, workspace: Workspace, task: Task) -> None:
        """Delivers the task. Raises AgentUnreachableError after at most 2 s."""

    async def cancel_task(self, workspace: Workspace, task: Task) -> bool:
        """Signals the cancellation. Raises AgentUnreachableError after at most 2 s.

        Returns False if the agent does not have the task yet, or no longer has it.
        """

    async def current_iteration(self, workspace: Workspace, task: Task) -> CurrentIteration | None:
        """The running calls of the task. Raises AgentUnreachableError after at most 2 s.

        Returns None if the agent does not report its calls.
        """
