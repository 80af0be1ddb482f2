"""Use case: cancel the task that runs in a workspace.

The promise: after `accepted` the task ends `cancelled`, even if the signal, the agent, the caller,
this process or the database fails, as long as the database keeps what it has committed. The promise
rests on the order of two steps:

1. The store commits the intent to cancel. Every end of a task is decided by `_end` in
   task_lifecycle.py under the same lock on the workspace, and `_end` reads the intent. From here on
   the task can therefore only end `cancelled`.
2. The agent is signalled. This only saves time. If the signal is lost, the agent receives the
   intent with the reply to its next commit or heartbeat, and the fleet controller repeats the
   signal. If the agent does not end the task in time (bounds.py), the controller ends its pod.

A caller receives `accepted` only after step 1.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Protocol, get_args

from evershell.workspace.v1 import field_limits

from evershell.core import deadline, errors
from evershell.core.caller import Caller, Permission
from evershell.core.errors import AgentUnreachableError, UnavailableError
from evershell.core.event import Origin
from evershell.core.ports import (
    Agents,
    CancellationRefusal,
    Cancellations,
    Clock,
    RecordedCancellation,
    Subscriptions,
    Workspaces,
)
from evershell.core.task import CancelIntent, Task
from evershell.core.validation import MAX_REASON_CHARACTERS, Fields

MAX_WAIT_SECONDS = field_limits.CANCEL_TASK_WAIT_MAX
MAX_FORCE_AFTER_SECONDS = field_limits.CANCEL_TASK_FORCE_AFTER_MAX


class Outcome(StrEnum):
    """The values of CancelTaskResponse.Outcome in the protos."""

    # This call recorded the intent.
    ACCEPTED = "accepted"
    # An earlier call recorded the intent. The agent is signalled again.
    ALREADY_REQUESTED = "already_requested"
    # The named task had ended before this call.
    ALREADY_FINISHED = "already_finished"
    # The call named no task, and none was running.
    NO_ACTIVE_TASK = "no_active_task"


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelTask:
    """The request. Raises Failure validation_error if a field is not valid."""

    workspace_id: str
    # None for the current task. An empty id is refused, because the caller may have lost the id.
    task_id: str | None = None
    reason: str = ""
    # How long to wait for the end of the task; None or 0 for no wait.
    wait_seconds: float | None = None
    # If the iteration still runs after this time, the agent interrupts it; None for never.
    force_after_seconds: float | None = None
    # Whether to also cancel every descendant that has not ended.
    include_descendants: bool = False
    origin: Origin

    def __post_init__(self) -> None:
        fields = Fields()
        fields.identifier("workspace_id", self.workspace_id)
        if self.task_id is not None:
            fields.identifier("task_id", self.task_id)
        check_reason_and_force(fields, self.reason, self.force_after_seconds)
        if self.wait_seconds is not None and not 0 <= self.wait_seconds <= MAX_WAIT_SECONDS:
            fields.reject("wait", f"must be 0 to {MAX_WAIT_SECONDS} s")
        fields.check()


def check_reason_and_force(fields: Fields, reason: str, force_after_seconds: float | None) -> None:
    """Checks the two fields that CancelTask and CancelTasks share."""
    fields.text("reason", reason, max_characters=MAX_REASON_CHARACTERS)
    if force_after_seconds is not None and not 0 <= force_after_seconds <= MAX_FORCE_AFTER_SECONDS:
        fields.reject("force_after", f"must be 0 to {MAX_FORCE_AFTER_SECONDS:,} s")


@dataclass(frozen=True, slots=True)
class CancelResult:
    """The result. `task` is the latest known state of the task; None for `no_active_task`."""

    workspace_id: str
    outcome: Outcome
    task: Task | None
    # The number of descendants whose cancellation the call recorded.
    descendants_cancelled: int = 0

    @property
    def saw_end(self) -> bool:
        """Whether the task had ended when the result was made."""
        return self.task is not None and self.task.status.is_terminal


class CancelTaskStore(Cancellations, Workspaces, Protocol):
    """What `cancel_task` needs from the store."""


async def cancel_task(
    caller: Caller,
    request: CancelTask,
    store: CancelTaskStore,
    agents: Agents,
    subscriptions: Subscriptions,
    clock: Clock,
) -> CancelResult:
    """Records the intent, signals the agent, and waits for the end of the task if requested.

    If the call is refused, no intent is recorded, and the Failure is permission_denied,
    workspace_not_found, task_not_found, workspace_provisioning, workspace_stopped, workspace_failed
    or workspace_deleting.

    If the intent is recorded, but the agent does not acknowledge the signal in time, raises Failure
    agent_unreachable at once, even if the request asks to wait.

    If the database does not answer, raises UnavailableError. The intent may or may not be recorded.

    The fleet controller, which the store wakes, signals the agents of descendants.
    """
    permission = caller.permission("workspace:write")
    record = store.cancel_tree if request.include_descendants else store.record_cancellation
    # Checks the request and records the intent in one transaction. If a check fails, no intent is
    # recorded.
    recorded = await record(
        permission,
        request.workspace_id,
        request.task_id,
        intent_of(caller, request.reason, request.force_after_seconds, request.origin, clock),
        request.origin.trace_id,
        request.origin.audit,
    )
    outcome = _outcome(permission, request, recorded)
    task = recorded.task
    if outcome in (Outcome.ACCEPTED, Outcome.ALREADY_REQUESTED):
        task = await _signal(recorded, store, agents, is_named=bool(request.task_id))
        if request.wait_seconds:
            wait_seconds = deadline.bounded(request.wait_seconds)
            task = await await_end(task, wait_seconds, store, subscriptions)
    return CancelResult(request.workspace_id, outcome, task, recorded.descendants_cancelled)


def intent_of(
    caller: Caller, reason: str, force_after_seconds: float | None, origin: Origin, clock: Clock
) -> CancelIntent:
    """The intent of a cancellation that the caller requests now."""
    now = clock()
    force_at = force_requested_by = None
    if force_after_seconds is not None:
        force_at = now + timedelta(seconds=force_after_seconds)
        force_requested_by = caller.actor_id
    return CancelIntent(
        requested_by=caller.actor_id,
        credential_kind=caller.credential_kind,
        requested_at=now,
        reason=reason,
        request_id=origin.request_id,
        force_at=force_at,
        force_requested_by=force_requested_by,
    )


def _outcome(
    permission: Permission, request: CancelTask, recorded: RecordedCancellation
) -> Outcome:
    """Converts the store's decision to the API's outcome. Raises the Failure of a failed check."""
    if recorded.workspace is None:
        raise errors.workspace_not_found(request.workspace_id)
    match recorded.outcome:
        case "accepted" | "already_requested" | "already_finished" | "no_active_task":
            return Outcome(recorded.outcome)
        case "permission_denied":
            raise permission.denial(recorded.workspace)
        case "task_not_found":
            raise errors.task_not_found(request.workspace_id, request.task_id or "")
        case refused:
            assert refused in get_args(CancellationRefusal), refused
            raise recorded.workspace.refusal()


async def _signal(
    recorded: RecordedCancellation, store: Workspaces, agents: Agents, *, is_named: bool
) -> Task:
    """Signals the agent, and returns the task. `is_named`: whether the call names the task.

    Raises Failure agent_unreachable if the agent does not acknowledge the signal within 2 s.
    """
    workspace, task = recorded.workspace, recorded.task
    assert workspace is not None and task is not None
    if workspace.is_waking:
        # No agent has the task yet. The fleet controller ends the task.
        return task
    try:
        is_known = await agents.cancel_task(workspace, task)
    except AgentUnreachableError as error:
        advice = (
            "A repeat of this call signals the agent again."
            if is_named
            else "Do not repeat the call without a task id: it could cancel the next task."
        )
        message = (
            f"The cancellation of task {task.id} is recorded and will be delivered, but the agent "
            f"of workspace {workspace.id} did not answer in time. Follow the task until it has "
            f"ended. {advice}"
        )
        raise errors.agent_unreachable(
            workspace.id, task.id, message, intent_recorded=True
        ) from error
    if is_known:
        return task
    # The agent has just ended the task, or has not received it yet. The database has the current
    # state. If the database does not answer, the call still succeeds, because the intent is
    # recorded. After `unavailable` the caller would retry, and a retry without a `task_id` could
    # cancel the next task.
    with suppress(UnavailableError):
        return await store.get_task(workspace.id, task.id) or task
    return task


async def await_end(
    task: Task,
    wait_seconds: float,
    store: Workspaces,
    subscriptions: Subscriptions,
    has_ended: Callable[[Task], bool] = lambda task: task.status.is_terminal,
) -> Task:
    """Waits for the end of the task, and returns the latest known state of the task.

    Also returns when `wait_seconds` are over, when this process is about to end, or when the
    workspace has been deleted. `has_ended` may define another state to wait for.
    """
    until = time.monotonic() + wait_seconds
    # Subscribes before the first read, so that a commit between a read and the wait is not missed.
    async with subscriptions.subscribe(task.workspace_id) as changes:
        while True:
            with suppress(UnavailableError):
                current = await store.get_task(task.workspace_id, task.id)
                if current is None:
                    return task
                task = current
            left_seconds = until - time.monotonic()
            if has_ended(task) or left_seconds <= 0 or not await changes.wait(left_seconds):
                return task
