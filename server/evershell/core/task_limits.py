"""The limits of a task. The service itself cancels a task that has reached one.

The intent is recorded like that of a caller, so the same promises hold. The tokens are checked in
the transaction that commits an iteration, the duration in the same place and by the fleet
controller. So no limit is forgotten while an agent is silent or the service restarts.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from evershell.core.task import CancelIntent, Limit, Task

# `requested_by` and `credential_kind` of the intent.
REQUESTER = "system:limit"
CREDENTIAL_KIND = "system"


@dataclass(frozen=True, slots=True)
class Reached:
    """A limit that a task has reached, and the intent to cancel the task."""

    limit: Limit
    intent: CancelIntent


def reached(task: Task, now: datetime) -> Reached | None:
    """The limit that the task has reached, if any."""
    limits = task.limits
    if limits.max_duration_seconds is not None and task.started_at is not None:
        due = task.started_at + timedelta(seconds=limits.max_duration_seconds)
        if due <= now:
            value = f"{limits.max_duration_seconds:.12g} s"
            return _reached(task, Limit.MAX_DURATION, value, now, due)
    tokens = task.usage.input_tokens + task.usage.output_tokens
    if limits.max_total_tokens is not None and tokens >= limits.max_total_tokens:
        value = f"{tokens} of {limits.max_total_tokens} tokens"
        return _reached(task, Limit.MAX_TOTAL_TOKENS, value, now, now)
    return None


def _reached(task: Task, limit: Limit, value: str, now: datetime, since: datetime) -> Reached:
    """`force_after` counts from the time at which the limit was reached."""
    seconds = task.limits.force_after_seconds
    intent = CancelIntent(
        requested_by=REQUESTER,
        credential_kind=CREDENTIAL_KIND,
        requested_at=now,
        reason=f"{limit} reached: {value}",
        request_id="",
        force_at=None if seconds is None else since + timedelta(seconds=seconds),
        force_requested_by=None if seconds is None else REQUESTER,
    )
    return Reached(limit, intent)
