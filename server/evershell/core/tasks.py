"""Use cases: submit a task, read tasks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Protocol

from evershell.workspace.v1 import field_limits

from evershell.core import deadline, errors, task_lifecycle, task_tree
from evershell.core.caller import Caller
from evershell.core.cancel_task import await_end
from evershell.core.change import Change, FirstCall, IdempotencyKey, KeyTakenError, Locked
from evershell.core.errors import AgentUnreachableError, Failure
from evershell.core.event import Origin
from evershell.core.idempotency import earlier_call, read_again
from evershell.core.ids import new_task_id
from evershell.core.money import NANOS_PER_DOLLAR
from evershell.core.ports import (
    Agents,
    Clock,
    IdempotencyKeys,
    Subscriptions,
    Transitions,
    Workspaces,
)
from evershell.core.task import (
    DEFAULT_MAX_ITERATIONS,
    MAX_DESCRIPTION_CHARACTERS,
    MAX_ITERATIONS,
    CurrentIteration,
    Phase,
    Task,
    TaskLimits,
    TaskStatus,
)
from evershell.core.task_filter import EVERY_TASK, ListFilter, OrgListFilter
from evershell.core.validation import Fields, Page, check_identifiers
from evershell.core.workspace import Workspace

MAX_METADATA_ENTRIES = field_limits.SUBMIT_TASK_METADATA_MAX
MAX_METADATA_KEY_CHARACTERS = field_limits.SUBMIT_TASK_METADATA_MAX_KEY
MAX_METADATA_VALUE_CHARACTERS = field_limits.SUBMIT_TASK_METADATA_MAX_VALUE

MAX_DURATION_SECONDS = field_limits.SUBMIT_TASK_LIMITS_MAX_DURATION_MAX
MAX_TOTAL_TOKENS = field_limits.SUBMIT_TASK_LIMITS_MAX_TOTAL_TOKENS_MAX
# In USD.
MAX_COST = field_limits.SUBMIT_TASK_LIMITS_MAX_COST_MAX
MAX_FORCE_AFTER_SECONDS = field_limits.SUBMIT_TASK_LIMITS_FORCE_AFTER_MAX

# The stored answer of a call whose task could not be delivered.
_UNREACHABLE = "agent_unreachable"
_REASON = "the agent could not be reached"
# How long a call that wakes a workspace waits for its agent. An earlier deadline of the call
# shortens the wait.
_WAKE_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitTask:
    """A request to submit a task. `max_iterations` 0 means the default."""

    workspace_id: str
    description: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    max_iterations: int = 0
    limits: TaskLimits = field(default_factory=TaskLimits)
    # None for a task without a parent.
    parent_task_id: str | None = None
    origin: Origin
    key: IdempotencyKey | None = None
    # The model that the agents use, if it has no price; otherwise empty. Without a price, a limit
    # on the cost cannot be checked and is refused.
    model_without_price: str = ""

    def __post_init__(self) -> None:
        fields = Fields()
        fields.identifier("workspace_id", self.workspace_id)
        fields.text(
            "description",
            self.description,
            max_characters=MAX_DESCRIPTION_CHARACTERS,
            required=True,
        )
        if len(self.metadata) > MAX_METADATA_ENTRIES:
            fields.reject(
                "metadata",
                f"has {len(self.metadata)} entries; at most {MAX_METADATA_ENTRIES} are allowed",
            )
        for key, value in self.metadata.items():
            fields.text("metadata", key, max_characters=MAX_METADATA_KEY_CHARACTERS, required=True)
            fields.text("metadata", value, max_characters=MAX_METADATA_VALUE_CHARACTERS)
        if self.max_iterations:
            fields.between("max_iterations", self.max_iterations, 1, MAX_ITERATIONS)
        if self.parent_task_id is not None:
            fields.identifier("parent_task_id", self.parent_task_id)
        _check_limits(self.limits, self.model_without_price, fields)
        if self.limits.include_descendants and self.parent_task_id is not None:
            fields.reject("limits.include_descendants", "is for a task without a parent")
        fields.check()


def _check_limits(limits: TaskLimits, model_without_price: str, fields: Fields) -> None:
    duration, tokens = limits.max_duration_seconds, limits.max_total_tokens
    if duration is not None and not 0 < duration <= MAX_DURATION_SECONDS:
        fields.reject(
            "limits.max_duration", f"must be more than 0 s and at most {MAX_DURATION_SECONDS:,} s"
        )
    if tokens is not None:
        fields.between("limits.max_total_tokens", tokens, 1, MAX_TOTAL_TOKENS)
    cost = limits.max_cost_nanos
    if cost is not None and not 0 < cost <= MAX_COST * NANOS_PER_DOLLAR:
        fields.reject("limits.max_cost", f"must be more than 0 and at most {MAX_COST:,} USD")
    elif cost is not None and model_without_price:
        fields.reject(
            "limits.max_cost",
            f"cannot be checked: the model {model_without_price} has no price",
        )
    force_after = limits.force_after_seconds
    if force_after is not None and not 0 <= force_after <= MAX_FORCE_AFTER_SECONDS:
        fields.reject("limits.force_after", f"must be 0 to {MAX_FORCE_AFTER_SECONDS:,} s")
    needed = "needs max_duration, max_total_tokens or max_cost"
    if force_after is not None and not limits.are_set:
        fields.reject("limits.force_after", needed)
    if limits.include_descendants and not limits.are_set:
        fields.reject("limits.include_descendants", needed)


class SubmitTaskStore(Transitions, IdempotencyKeys, Workspaces, Protocol):
    """What `submit_task` needs from the store."""


async def submit_task(
    caller: Caller,
    request: SubmitTask,
    store: SubmitTaskStore,
    agents: Agents,
    subscriptions: Subscriptions,
    clock: Clock,
) -> Task:
    """Records the task, then delivers it to the agent.

    If the workspace was suspended, waits for its new agent: up to 30 s, or less if the deadline of
    the call is earlier.

    If an earlier call with the same key had an effect, gives the answer of the earlier call.

    Raises Failure: permission_denied, workspace_not_found, org_on_hold, workspace_provisioning,
    workspace_stopped, workspace_failed, workspace_deleting, workspace_busy, idempotency_conflict;
    agent_unreachable when the task could not be delivered and has ended `delivery_failed`; with a
    parent also task_not_found, parent_not_running, tree_limit_reached.
    """
    permission = caller.permission("tasks:write")
    parent_id = request.parent_task_id
    parent_permission = caller.permission("workspace:write") if parent_id else None
    task = _new_task(caller, request, clock())
    call = None
    if request.key is not None:
        call = request.key.first_call(caller, task.created_at, task.workspace_id, task.id)

    def submit(locked: Locked) -> Change:
        permission.check(locked.workspace, request.workspace_id)
        parent = None
        if parent_id and parent_permission:
            parent = task_tree.check_parent(locked.parent, parent_id, parent_permission)
        locked.require_no_hold()
        new = task_tree.child(parent, task) if parent else task
        change = task_lifecycle.submit(locked, new, caller.actor_id)
        return replace(change.caused_by(request.origin), first_call=call)

    try:
        submitted = await store.transition(request.workspace_id, submit, caller.org_id, parent_id)
    except (Failure, KeyTakenError) as refusal:
        call = await earlier_call(call, refusal, store)
        submitted = await read_again(call, permission, request.origin, store)
        task = await _current(submitted, call.workspace_id, call.task_id, store)
    if submitted is None:
        raise errors.workspace_not_found(request.workspace_id)
    answer = call.answer if call is not None else ""
    if submitted.task is not None and submitted.task.id == task.id:
        # Only the committed task has its ancestors: they are read in the transaction.
        task = submitted.task
    if not answer:
        task, answer = await _deliver(
            submitted.workspace, task, store, agents, subscriptions, clock
        )
        if call is not None:
            answer = await store.record_answer(call, answer)
    if answer == _UNREACHABLE:
        raise _unreachable(task, call)
    return replace(task, status=TaskStatus(answer))


def _new_task(caller: Caller, request: SubmitTask, now: datetime) -> Task:
    return Task(
        id=new_task_id(now),
        workspace_id=request.workspace_id,
        description=request.description,
        metadata=dict(request.metadata),
        submitted_by=caller.actor_id,
        limits=request.limits,
        in_limited_tree=request.limits.include_descendants,
        max_iterations=request.max_iterations or DEFAULT_MAX_ITERATIONS,
        created_at=now,
    )


async def _deliver(
    workspace: Workspace,
    task: Task,
    store: SubmitTaskStore,
    agents: Agents,
    subscriptions: Subscriptions,
    clock: Clock,
) -> tuple[Task, str]:
    """Delivers the task unless it was delivered before.

    Returns the task in its new state, and the answer to the call (FirstCall.answer).

    If the task cannot be delivered, it ends `delivery_failed`, unless the agent has started it and
    only the reply of the agent was lost.
    """
    if task.status is not TaskStatus.SUBMITTED:
        return task, _answer(task)
    if workspace.is_waking:
        # The reply to the registration of the new agent assigns the task, so no signal is needed,
        # and nothing is lost if this process ends.
        seconds = deadline.bounded(_WAKE_SECONDS)
        task = await await_end(task, seconds, store, subscriptions, _has_started)
        return task, _answer(task)
    try:
        await agents.start_task(workspace, task)
    except AgentUnreachableError:
        failed = await store.transition(
            workspace.id,
            lambda locked: task_lifecycle.fail_delivery(locked, task.id, _REASON, clock()),
        )
        current = await _current(failed, workspace.id, task.id, store)
        return current, _answer(current) if current.started_at is not None else _UNREACHABLE
    delivered = await store.transition(
        workspace.id, lambda locked: task_lifecycle.deliver(locked, task.id)
    )
    current = await _current(delivered, workspace.id, task.id, store)
    return current, _answer(current)


def _has_started(task: Task) -> bool:
    return task.status is not TaskStatus.SUBMITTED


def _answer(task: Task) -> str:
    return _UNREACHABLE if task.status is TaskStatus.DELIVERY_FAILED else str(task.status)


def _unreachable(task: Task, call: FirstCall | None) -> Failure:
    again = "Submit it again later" + (", with a new idempotency key." if call else ".")
    message = (
        f"The agent of workspace {task.workspace_id} could not be reached, so task {task.id} has "
        f"ended `delivery_failed`. {again}"
    )
    return errors.agent_unreachable(task.workspace_id, task.id, message, intent_recorded=False)


async def _current(
    change: Change | None, workspace_id: str, task_id: str, store: Workspaces
) -> Task:
    """The task after the change.

    If the task had ended before the change, the change does not contain it, so it is read from the
    store. Raises Failure workspace_not_found if the workspace has been deleted.
    """
    if change is not None and change.task is not None and change.task.id == task_id:
        return change.task
    task = await store.get_task(workspace_id, task_id)
    if task is None:
        raise errors.workspace_not_found(workspace_id)
    return task


async def get_task(caller: Caller, workspace_id: str, task_id: str, store: Workspaces) -> Task:
    """Reads one task.

    Raises Failure: validation_error, permission_denied, workspace_not_found, task_not_found.
    """
    _, task = await read_task(caller, workspace_id, task_id, store)
    return task


async def read_task(
    caller: Caller, workspace_id: str, task_id: str, store: Workspaces
) -> tuple[Workspace, Task]:
    """Reads a task and its workspace in one query. Raises the same Failures as get_task."""
    check_identifiers(workspace_id=workspace_id, task_id=task_id)
    permission = caller.permission("workspace:read")
    workspace, task = await store.get_workspace_with_task(workspace_id, task_id, caller.org_id)
    workspace = permission.check(workspace, workspace_id)
    if task is None:
        raise errors.task_not_found(workspace_id, task_id)
    return workspace, task


async def get_current_iteration(
    workspace: Workspace, task: Task, agents: Agents
) -> tuple[Phase, CurrentIteration]:
    """The phase of the task, and the calls that its agent reports as running.

    `task` must just have been read. Raises Failure agent_unreachable if the agent does not answer
    within 2 s.
    """
    if task.status is not TaskStatus.RUNNING:
        return Phase.NONE, CurrentIteration()
    try:
        current = await agents.current_iteration(workspace, task)
    except AgentUnreachableError as error:
        message = (
            f"The agent of workspace {workspace.id} did not answer in time. GetTask returns the "
            f"status and the phase of task {task.id}, as the service knows them."
        )
        raise errors.agent_unreachable(
            workspace.id, task.id, message, intent_recorded=task.cancel is not None
        ) from error
    if current is None:
        return task.phase, CurrentIteration(number=task.iterations + 1)
    return current.calls[-1].phase if current.calls else Phase.NONE, current


async def list_tasks(
    caller: Caller,
    workspace_id: str,
    page: Page,
    store: Workspaces,
    wanted: ListFilter = EVERY_TASK,
) -> tuple[Sequence[Task], str]:
    """A page of the workspace's tasks that match, newest first, and the token of the next page.

    The token is empty on the last page. Raises Failure: validation_error, permission_denied,
    workspace_not_found.
    """
    check_identifiers(workspace_id=workspace_id)
    permission = caller.permission("workspace:read")
    permission.check(await store.get_workspace(workspace_id, caller.org_id), workspace_id)
    listed = await store.list_tasks(workspace_id, page.before_id, page.size + 1, wanted)
    return page.cut(listed, _characters)


async def list_org_tasks(
    caller: Caller, wanted: OrgListFilter, page: Page, store: Workspaces
) -> tuple[Sequence[Task], str]:
    """Like list_tasks, for the organization's tasks that match and that the caller may read."""
    permission = caller.permission("workspace:read")
    if workspace_id := wanted.workspace_id:
        permission.check(await store.get_workspace(workspace_id, caller.org_id), workspace_id)
    listed = await store.list_org_tasks(permission, wanted, page.before_id, page.size + 1)
    return page.cut(listed, _characters)


async def count_tasks(
    caller: Caller, workspace_id: str, store: Workspaces, wanted: ListFilter
) -> int:
    """The number of tasks of the workspace that match.

    Raises Failure: permission_denied, workspace_not_found.
    """
    permission = caller.permission("workspace:read")
    permission.check(await store.get_workspace(workspace_id, caller.org_id), workspace_id)
    return await store.count_tasks(workspace_id, wanted)


def _characters(task: Task) -> int:
    """The total length of the texts that a caller or an agent can make long."""
    texts = [task.description, task.result, task.reason, *task.metadata, *task.metadata.values()]
    if task.cancel is not None:
        texts.append(task.cancel.reason)
    return sum(map(len, texts))
