"""Cancel the task that runs in a workspace: what this service exists for.

The order is the promise. The intent is committed before the agent is signalled and before anyone is
told `accepted`; from then on every end of the task is `cancelled` (lifecycle.py), whatever becomes
of the signal, the agent, the caller or this process.
"""

import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from server.core import deadline, errors
from server.core.caller import Caller, Permission
from server.core.errors import AgentUnreachableError, UnavailableError
from server.core.ports import Agents, Clock, RecordedCancellation, Store, Wakeups
from server.core.task import CancelIntent, Task
from server.core.validation import MAX_REASON_CHARACTERS, Fields

MAX_WAIT_SECONDS = 30
MAX_FORCE_AFTER_SECONDS = 86_400


class Outcome(StrEnum):
    """See CancelTaskResponse.Outcome in the protos."""

    ACCEPTED = "accepted"
    ALREADY_REQUESTED = "already_requested"
    ALREADY_FINISHED = "already_finished"
    NO_ACTIVE_TASK = "no_active_task"


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelTask:
    """The request. `task_id` empty: whichever task runs. `wait_seconds` None: the answer does not
    wait for the end.

    `force_after_seconds` None: the iteration in flight is not broken off, however long it takes.
    """

    workspace_id: str
    task_id: str = ""
    reason: str = ""
    wait_seconds: float | None = None
    force_after_seconds: float | None = None
    request_id: str

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
    """The answer. `task` is the task as it stands; None when there is no active one."""

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
    """Records the cancellation, then signals the agent, then waits for the end if that was asked
    for.

    Raises Failure: permission_denied, workspace_not_found, task_not_found, workspace_provisioning,
    workspace_stopped, workspace_failed; agent_unreachable when the intent is recorded and the
    signal did not arrive in time.
    """
    permission = caller.permission("workspace:write")
    intent = _intent(caller, request, clock)
    found = await store.record_cancellation(
        permission, request.workspace_id, request.task_id or None, intent
    )
    outcome = _judge(permission, request, found)
    task = found.task
    if outcome in (Outcome.ACCEPTED, Outcome.ALREADY_REQUESTED):
        task = await _signal(found, store, agents)
        if task is not None and request.wait_seconds:
            task = await _await_end(task, deadline.bounded(request.wait_seconds), store, wakeups)
    return CancelResult(request.workspace_id, outcome, task)


def _intent(caller: Caller, request: CancelTask, clock: Clock) -> CancelIntent:
    now, force_after_seconds = clock(), request.force_after_seconds
    return CancelIntent(
        requested_by=caller.actor_id,
        credential_kind=caller.credential_kind,
        requested_at=now,
        reason=request.reason,
        request_id=request.request_id,
        force_at=None
        if force_after_seconds is None
        else now + timedelta(seconds=force_after_seconds),
        force_requested_by=None if force_after_seconds is None else caller.actor_id,
    )


def _judge(permission: Permission, request: CancelTask, found: RecordedCancellation) -> Outcome:
    """Names what the store did under the lock, or says why it did nothing. The order of the checks
    is part of the promise.
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
    """Makes it fast. That it happens at all rests on the recorded intent, which the agent's next
    commit or heartbeat meets.
    """
    workspace, task = found.workspace, found.task
    assert workspace is not None and task is not None
    try:
        known = await agents.cancel_task(workspace, task)
    except AgentUnreachableError as error:
        message = (
            f"The cancellation of task {task.id} is recorded and will be delivered, but the agent of workspace {workspace.id} did "
            f"not answer in time. Do not repeat the call; follow the task with GetTask or WatchEvents."
        )
        raise errors.agent_unreachable(
            workspace.id, task.id, message, intent_recorded=True
        ) from error
    if known:
        return task
    # An agent that does not have the task has just ended it, or has not been given it yet: the
    # database knows. Should it not answer now, the recorded intent still stands, and `unavailable`
    # would invite a retry that could meet the next task.
    with suppress(UnavailableError):
        return await store.get_task(workspace.id, task.id)
    return task


async def _await_end(task: Task, patience_seconds: float, store: Store, wakeups: Wakeups) -> Task:
    """The task once it has ended; as it then stands when the patience is over, or this process is
    about to end.
    """
    until = time.monotonic() + patience_seconds
    # Subscribed before the first read, so that no commit falls between a read and the wait.
    async with wakeups.subscribe(task.workspace_id) as wakeup:
        while True:
            with suppress(UnavailableError):
                task = await store.get_task(task.workspace_id, task.id) or task
            left_seconds = until - time.monotonic()
            if task.status.is_terminal or left_seconds <= 0 or not await wakeup.wait(left_seconds):
                return task
