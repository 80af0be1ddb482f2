"""The limits of a task. The service itself cancels a task that has reached one.

The intent is recorded like that of a caller, so the same promises hold. The tokens are checked in
the transaction that commits an iteration, the duration in the same place and by the fleet
controller. So no limit is forgotten while an agent is silent or the service restarts.
"""

from datetime import datetime, timedelta

from evershell.server.core.task import CancelIntent, Task

# `requested_by` and `credential_kind` of the intent.
REQUESTER = "system:limit"
CREDENTIAL_KIND = "system"
# The limits. The reason of the intent begins with one of these names.
NAMES = ("max_duration", "max_total_tokens")


def reached(task: Task, now: datetime) -> CancelIntent | None:
    """The intent to cancel the task, if it has reached a limit."""
    limits = task.limits
    if limits.max_duration_seconds is not None and task.started_at is not None:
        due = task.started_at + timedelta(seconds=limits.max_duration_seconds)
        if due <= now:
            reason = f"max_duration reached: {limits.max_duration_seconds:g} s"
            return _intent(task, reason, now, due)
    tokens = task.usage.input_tokens + task.usage.output_tokens
    if limits.max_total_tokens is not None and tokens >= limits.max_total_tokens:
        reason = f"max_total_tokens reached: {tokens} of {limits.max_total_tokens} tokens"
        return _intent(task, reason, now, now)
    return None


def _intent(task: Task, reason: str, now: datetime, since: datetime) -> CancelIntent:
    """`force_after` counts from the time at which the limit was reached."""
    seconds = task.limits.force_after_seconds
    return CancelIntent(
        requested_by=REQUESTER,
        credential_kind=CREDENTIAL_KIND,
        requested_at=now,
        reason=reason,
        request_id="",
        force_at=None if seconds is None else since + timedelta(seconds=seconds),
        force_requested_by=None if seconds is None else REQUESTER,
    )
