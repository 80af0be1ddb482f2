"""The limits of a task. The service itself cancels a task that has reached a limit.

The intent to cancel is recorded like a caller's, so the same promises hold. The transaction that
commits an iteration checks tokens, cost and duration. The fleet controller checks the duration too,
so no limit is forgotten while an agent is silent or the service restarts.

If the limits of a root include its descendants, the root's own usage is checked in the same way.
The usage of the whole tree is checked only by the fleet controller, every second, so commits of
descendants have no additional cost.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from evershell.core import money
from evershell.core.caller import Caller, CredentialKind, Permission
from evershell.core.task import CancelIntent, Limit, Task

# The `requested_by` of an intent that a limit caused.
REQUESTER = "system:limit"
# The `credential_kind` of such an intent.
CREDENTIAL_KIND = CredentialKind.SYSTEM
# From this percentage of a limit on, a task counts as approaching it.
_APPROACHED_PERCENT = 80


@dataclass(frozen=True, slots=True)
class Reached:
    """A limit that a task has reached, and the intent to cancel the task."""

    limit: Limit
    intent: CancelIntent


@dataclass(frozen=True, slots=True)
class Budget:
    """A limit on a task's usage. The numbers are tokens or nano-dollars."""

    limit: Limit
    maximum: int
    # None if the cost is unknown.
    used: int | None

    @property
    def is_reached(self) -> bool:
        return self.used is None or self.used >= self.maximum

    @property
    def is_approached(self) -> bool:
        return self.used is None or self.used * 100 >= self.maximum * _APPROACHED_PERCENT

    def text(self, number: int) -> str:
        """The number as text: tokens, or dollars with at least two decimals."""
        return str(number) if self.limit is Limit.MAX_TOTAL_TOKENS else money.text(number)


def budgets(task: Task) -> Iterator[Budget]:
    """The limits on the task's usage."""
    limits, usage = task.limits, task.used
    if limits.max_total_tokens is not None:
        tokens = usage.input_tokens + usage.output_tokens
        yield Budget(Limit.MAX_TOTAL_TOKENS, limits.max_total_tokens, tokens)
    if limits.max_cost_nanos is not None:
        yield Budget(Limit.MAX_COST, limits.max_cost_nanos, usage.cost_nanos)


def approached(before: Task, after: Task) -> list[Budget]:
    """The limits that the task approaches in `after` but not in `before`, and has not reached."""
    return [
        now
        for then, now in zip(budgets(before), budgets(after), strict=True)
        if now.is_approached and not (then.is_approached or now.is_reached)
    ]


def reached(task: Task, now: datetime) -> Reached | None:
    """The limit that the task has reached, if any."""
    limits = task.limits
    # A root may get descendants before it starts. If it ends without having started, the duration
    # of the tree counts from the end of the root.
    since = task.started_at or task.completed_at
    if limits.max_duration_seconds is not None and since is not None:
        due = since + timedelta(seconds=limits.max_duration_seconds)
        if due <= now:
            reason = f"max_duration reached: {limits.max_duration_seconds:.12g} s"
            return _reached(task, Limit.MAX_DURATION, reason, now, due)
    for budget in budgets(task):
        if budget.is_reached:
            return _reached(task, budget.limit, _reason(budget), now, now)
    return None


def service_permission(org_id: str) -> Permission:
    """The service's own permission to cancel a tree of the organization."""
    return Permission(Caller(org_id, REQUESTER, CREDENTIAL_KIND, frozenset()), (), own_only=False)


def _reason(budget: Budget) -> str:
    if budget.used is None:
        return f"{budget.limit} cannot be checked: a model without a price was used"
    unit = "tokens" if budget.limit is Limit.MAX_TOTAL_TOKENS else "USD"
    used, maximum = budget.text(budget.used), budget.text(budget.maximum)
    return f"{budget.limit} reached: {used} of {maximum} {unit}"


def _reached(task: Task, limit: Limit, reason: str, now: datetime, since: datetime) -> Reached:
    """`since` is when the limit was reached. `force_after` counts from then."""
    seconds = task.limits.force_after_seconds
    intent = CancelIntent(
        requested_by=REQUESTER,
        credential_kind=CREDENTIAL_KIND,
        requested_at=now,
        reason=reason,
        request_id="",
        force_at=None if seconds is None else since + timedelta(seconds=seconds),
        force_requested_by=None if seconds is None else REQUESTER,
    )
    return Reached(limit, intent)
