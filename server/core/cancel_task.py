"""Cancels the task that runs in a workspace: what this service exists for.

The order of the steps is the promise. The intent to cancel is committed before the agent is
signalled, and before any caller gets `accepted`. From then on every end of the task is `cancelled`
(task_lifecycle.py), even if the signal, the agent, the caller or this process fails.
"""

import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from server.core import deadline, errors
from server.core.caller import Caller, Permission
from server.core.errors import AgentUnreachableError, UnavailableError
from server.core.event import Origin
from server.core.ports import Agents, Clock, RecordedCancellation, Store, Wakeups
from server.core.task import CancelIntent, Task
from server.core.validation import MAX_REASON_CHARACTERS, Fields

MAX_WAIT_SECONDS = 30
MAX_FORCE_AFTER_SECONDS = 86_400


class Outcome(StrEnum):
    """The values of CancelTaskResponse.Outcome in the protos."""

    ACCEPTED = "accepted"
    ALREADY_REQUESTED = "already_requested"
    ALREADY_FINISHED = "already_finished"
    NO_ACTIVE_TASK = "no_active_task"


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelTask:
    """The request. Raises Failure validation_error if a field is not valid."""

    workspace_id: str
    # Empty: the task that runs.
    task_id: str = ""
    reason: str = ""
    # None: do not wait for the end of the task.
    wait_seconds: float | None = None
    # None: never break off the current iteration.
    force_after_seconds: float | None = None
    origin: Origin

    def __post_init__(self) -> None:
        fields = Fields()
        fields.identifier("workspace_id", self.workspace_id)
        if self.task_id:
            fields.identifier("task_id", self.task_id)
        fields.text("reason", self.reason, max_characters=MAX_REASON_CHARACTERS)
        if self.wait_seconds is not None and not 0 <= self.wait_seconds <= MAX_WAIT_SECONDS:
            fields.reject("wait", f"must be 0 to {MAX_WAIT_SECONDS} s")
        if (
            self.force_after_seconds is not None
            and not 0 <= self.force_after_seconds <= MAX_FORCE_AFTER_SECONDS
        ):
            fields.reject("force_after", f"must be 0 to {MAX_FORCE_AFTER_SECONDS:,} s")
        fields.check()


@dataclass(frozen=True, slots=True)
class CancelResult:
    """The result. `task` is the current state of the task; None if no task was active."""

    workspace_id: str
    outcome: Outcome
    task: Task | None

    @property
    def saw_end(self) -> bool:
        """Whether the task had ended by the time of the answer."""
        return self.task is not None and self.task.status.is_terminal


async def cancel_task(
    caller: Caller,
    request: CancelTask,
    store: Store,
    agents: Agents,
    wakeups: Wakeups,
    clock: Clock,
) -> CancelResult:
    """Records the intent, signals the agent, and waits for the end of the task if asked to.

    Raises Failure: permission_denied, workspace_not_found, task_not_found, workspace_provisioning,
    workspace_stopped, workspace_failed; agent_unreachable if the intent is recorded and the agent
    did not acknowledge the signal in time. Raises UnavailableError if the database did not answer;
    the intent may or may not be recorded.
    """
    permission = caller.permission("workspace:write")
    intent = _intent(caller, request, clock)
    found = await store.record_cancellation(
        permission,
        request.workspace_id,
        request.task_id or None,
        intent,
        request.origin.trace_id,
    )
    outcome = _outcome(permission, request, found)
    task = found.task
    if outcome in (Outcome.ACCEPTED, Outcome.ALREADY_REQUESTED):
        task = await _signal(found, store, agents)
        if task is not None and request.wait_seconds:
            wait_seconds = deadline.bounded(request.wait_seconds)
            task = await _await_end(task, wait_seconds, store, wakeups)
    return CancelResult(request.workspace_id, outcome, task)


def _intent(caller: Caller, request: CancelTask, clock: Clock) -> CancelIntent:
    now = clock()
    force_at = force_requested_by = None
    if request.force_after_seconds is not None:
        force_at = now + timedelta(seconds=request.force_after_seconds)
        force_requested_by = caller.actor_id
    return CancelIntent(
        requested_by=caller.actor_id,
        credential_kind=caller.credential_kind,
        requested_at=now,
        reason=request.reason,
        request_id=request.origin.request_id,
        force_at=force_at,
        force_requested_by=force_requested_by,
    )


def _outcome(permission: Permission, request: CancelTask, found: RecordedCancellation) -> Outcome:
    """The outcome of what the store did. Raises Failure if the store refused.

    The order of the checks is part of the contract.
    """
    workspace = permission.check(found.workspace, request.workspace_id)
    task = found.task
    if request.task_id and task is None:
        raise errors.task_not_found(workspace.id, request.task_id)
    if task is not None and task.status.is_terminal:
        return Outcome.ALREADY_FINISHED
    workspace.require_up()
    if task is None:
        return Outcome.NO_ACTIVE_TASK
    return Outcome.ACCEPTED if found.recorded else Outcome.ALREADY_REQUESTED


async def _signal(found: RecordedCancellation, store: Store, agents: Agents) -> Task | None:
    """Signals the agent and returns the task.

    The signal only reduces latency. Correctness rests on the recorded intent, which the agent
    receives with the reply to its next commit or heartbeat.
    """
    workspace, task = found.workspace, found.task
    assert workspace is not None and task is not None
    try:
        is_known = await agents.cancel_task(workspace, task)
    except AgentUnreachableError as error:
        message = (
            f"The cancellation of task {task.id} is recorded and will be delivered, but the agent "
            f"of workspace {workspace.id} did not answer in time. Do not repeat the call; follow "
            "the task with GetTask or WatchEvents."
        )
        raise errors.agent_unreachable(
            workspace.id, task.id, message, intent_recorded=True
        ) from error
    if is_known:
        return task
    # The agent has just ended the task, or has not received it yet. The database knows which. If it
    # does not answer, the recorded intent stands: `unavailable` would invite the caller to retry,
    # and the retry could cancel the next task.
    with suppress(UnavailableError):
        return await store.get_task(workspace.id, task.id)
    return task


async def _await_end(task: Task, wait_seconds: float, store: Store, wakeups: Wakeups) -> Task:
    """Waits for the end of the task, and returns the task as it is then.

    Returns earlier after `wait_seconds`, or if this process is about to end.
    """
    until = time.monotonic() + wait_seconds
    # Subscribes before the first read, so that no commit is missed between a read and the wait.
    async with wakeups.subscribe(task.workspace_id) as wakeup:
        while True:
            with suppress(UnavailableError):
                task = await store.get_task(task.workspace_id, task.id) or task
            left_seconds = until - time.monotonic()
            if task.status.is_terminal or left_seconds <= 0 or not await wakeup.wait(left_seconds):
                return task
