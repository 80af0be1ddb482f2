"""Use case: cancel the tasks of the organization that match a filter, or all of them.

Each task is cancelled the same way as with CancelTask, with the same promise: the intent is
committed first, and decides how the task ends. A call may commit its intents in several
transactions, but commits all of them before it answers. The store then wakes the fleet controller,
which signals the agents, so the call does not wait for the agents.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from evershell.core import deadline
from evershell.core.bulk import DRY_RUN, BulkResult, BulkStore, Item, Outcome, once
from evershell.core.caller import Caller, Permission
from evershell.core.cancel_task import check_reason_and_force, intent_of
from evershell.core.change import FirstCall, IdempotencyKey
from evershell.core.errors import UnavailableError
from evershell.core.event import Origin
from evershell.core.ports import Cancellations, Clock, MatchedTask, MatchedTasks
from evershell.core.task import CancelIntent
from evershell.core.task_filter import TaskFilter, TaskSelection
from evershell.core.validation import Fields

# The maximum number of tasks that one call cancels.
MAX_TASKS = 1_000
# The maximum number of tasks in one transaction, which locks their workspaces for a few
# milliseconds.
MAX_BATCH = 250


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelTasks:
    """The request. Raises Failure validation_error."""

    wanted: TaskSelection
    reason: str = ""
    force_after_seconds: float | None = None
    # Whether to cancel nothing, and only report what the call would do.
    dry_run: bool = False
    # A dry run ignores the key.
    key: IdempotencyKey | None = None
    origin: Origin

    def __post_init__(self) -> None:
        fields = Fields()
        check_reason_and_force(fields, self.reason, self.force_after_seconds)
        fields.check()


class CancelTasksStore(Cancellations, BulkStore, Protocol):
    """What `cancel_tasks` needs from the store."""


async def cancel_tasks(
    caller: Caller, request: CancelTasks, store: CancelTasksStore, clock: Clock
) -> BulkResult:
    """Records the intents of at most MAX_TASKS tasks, the oldest first; none in a dry run.

    Tasks whose intent is already recorded do not count toward this maximum. With the key of an
    earlier call, returns the result of that call. Raises Failure: permission_denied,
    idempotency_conflict.
    """
    permission = caller.permission("workspace:write")
    origin = request.origin
    intent = intent_of(caller, request.reason, request.force_after_seconds, origin, clock)
    if request.dry_run:
        return await _look(permission, request.wanted, intent, origin, store)
    if request.key is None:
        return await cancel_matching(permission, request.wanted, intent, origin, store)
    call = request.key.first_call(caller, intent.requested_at, workspace_id="")
    return await once(
        call,
        lambda: _cancel_at_once(permission, request.wanted, intent, origin, call, store),
        store,
        origin.audit,
    )


async def _look(
    permission: Permission,
    wanted: TaskSelection,
    intent: CancelIntent,
    origin: Origin,
    store: Cancellations,
) -> BulkResult:
    matches = await store.match_tasks(permission, wanted, intent.force_at, MAX_TASKS)
    if origin.audit is not None:
        # This call names no tasks, so it stores only the audit entry.
        audit = replace(origin.audit, outcome=DRY_RUN)
        await store.cancel_tasks(permission, (), intent, origin.trace_id, audit)
    return BulkResult(
        matched=matches.matched,
        already_requested=matches.matched - matches.pending,
        results=tuple(
            _result(each, Outcome.MATCHED if each.is_pending else Outcome.ALREADY_REQUESTED)
            for each in matches.tasks
        ),
    )


async def cancel_matching(
    permission: Permission,
    wanted: TaskSelection,
    intent: CancelIntent,
    origin: Origin,
    store: Cancellations,
) -> BulkResult:
    """Records the intent for at most MAX_TASKS tasks. Does not check the caller's scope."""
    matches = await store.match_tasks(permission, wanted, intent.force_at, MAX_TASKS)
    pending = [each for each in matches.tasks if each.is_pending]
    outcomes: dict[str, Outcome | None] = {}
    # Runs at least once, to store the entry of the audit log even if no task is pending.
    for first in range(0, max(len(pending), 1), MAX_BATCH):
        batch = [each.task_id for each in pending[first : first + MAX_BATCH]]
        recorded = await store.cancel_tasks(
            permission, batch, intent, origin.trace_id, origin.audit
        )
        outcomes |= {task_id: _outcome(is_new) for task_id, is_new in recorded.items()}
    left_out = [each.task_id for each in pending if each.task_id not in outcomes]
    if left_out:
        outcomes |= await _one_by_one(permission, left_out, intent, origin, store)
    not_cancelled = [
        each for each in pending if each.task_id in outcomes and outcomes[each.task_id] is None
    ]
    if not_cancelled:
        outcomes |= await _in_stopping_workspaces(permission, not_cancelled, intent, store)
    return _summary(matches, outcomes)


async def _cancel_at_once(
    permission: Permission,
    wanted: TaskSelection,
    intent: CancelIntent,
    origin: Origin,
    call: FirstCall,
    store: Cancellations,
) -> BulkResult:
    """Like cancel_matching, in one transaction, which also stores the key with the answer.

    So a repeat finds the whole answer or no effect, whenever this process dies. Tasks whose
    workspaces other transactions have locked are left for a further call.
    """
    matches = await store.match_tasks(permission, wanted, intent.force_at, MAX_TASKS)
    task_ids = [each.task_id for each in matches.tasks if each.is_pending]

    def result(recorded: Mapping[str, bool]) -> BulkResult:
        return _summary(matches, {id_: _outcome(is_new) for id_, is_new in recorded.items()})

    return result(
        await store.cancel_tasks(
            permission,
            task_ids,
            intent,
            origin.trace_id,
            origin.audit,
            first_call=lambda recorded: replace(call, answer=result(recorded).as_answer()),
        )
    )


async def _one_by_one(
    permission: Permission,
    task_ids: list[str],
    intent: CancelIntent,
    origin: Origin,
    store: Cancellations,
) -> dict[str, Outcome | None]:
    """Cancels tasks whose workspaces other transactions had locked. Waits for these locks.

    The outcome of a task that has ended, or whose workspace is no longer up, is None. A task whose
    lock was not released in time is missing from the outcomes.
    """

    async def cancel(task_id: str) -> dict[str, Outcome | None]:
        try:
            recorded = await store.cancel_tasks(
                permission, (task_id,), intent, origin.trace_id, origin.audit, wait=True
            )
        except UnavailableError:
            return {}
        return {task_id: _outcome(recorded[task_id]) if task_id in recorded else None}

    outcomes: dict[str, Outcome | None] = {}
    for answer in await asyncio.gather(*map(cancel, task_ids)):
        outcomes |= answer
    return outcomes


async def _in_stopping_workspaces(
    permission: Permission, tasks: Sequence[MatchedTask], intent: CancelIntent, store: Cancellations
) -> dict[str, Outcome | None]:
    """Finds which of these tasks have not ended, and gives them the outcome ALREADY_REQUESTED.

    StopWorkspace or DeleteWorkspace has already recorded their intents.
    """
    named = TaskFilter(task_ids=tuple(each.task_id for each in tasks))
    matches = await store.match_tasks(permission, named, intent.force_at, len(tasks))
    open_ids = {each.task_id for each in matches.tasks if not each.is_pending}
    return {each.task_id: Outcome.ALREADY_REQUESTED for each in tasks if each.task_id in open_ids}


def _summary(matches: MatchedTasks, outcomes: dict[str, Outcome | None]) -> BulkResult:
    results = []
    for each in matches.tasks:
        outcome = outcomes.get(each.task_id) if each.is_pending else Outcome.ALREADY_REQUESTED
        if outcome is not None:
            results.append(_result(each, outcome))
    counts = Counter(outcomes.values())
    already_requested = matches.matched - matches.pending
    return BulkResult(
        # Tasks that have ended since the match no longer count.
        matched=matches.matched - counts[None],
        accepted=counts[Outcome.ACCEPTED],
        already_requested=already_requested + counts[Outcome.ALREADY_REQUESTED],
        results=tuple(results),
    )


def _outcome(is_new: bool) -> Outcome:
    return Outcome.ACCEPTED if is_new else Outcome.ALREADY_REQUESTED


def _result(task: MatchedTask, outcome: Outcome) -> Item:
    return Item(task.workspace_id, task.task_id, outcome)


async def cancel_until_done(
    permission: Permission,
    wanted: TaskSelection,
    intent: CancelIntent,
    origin: Origin,
    store: Cancellations,
    limit_seconds: float,
) -> BulkResult:
    """Repeats `cancel_matching` until no task is left or the time is over.

    Also stops when a call has cancelled no further task.
    """
    until = time.monotonic() + deadline.bounded(limit_seconds)
    accepted = 0
    while True:
        result = await cancel_matching(permission, wanted, intent, origin, store)
        accepted += result.accepted
        if not result.remaining or not result.accepted or time.monotonic() >= until:
            break
    # The last round reports the tasks of the earlier rounds as already requested.
    earlier = accepted - result.accepted
    return replace(
        result, accepted=accepted, already_requested=result.already_requested - earlier, results=()
    )
