"""Converts durations, and the limits of tasks."""

from typing import Any

from evershell.workspace.v1 import task_pb2
from google.protobuf.duration_pb2 import Duration

from evershell.core.task import TaskLimits

_NANOS = 1_000_000_000


def duration_seconds(duration: Duration) -> float:
    """The duration in seconds."""
    return duration.seconds + duration.nanos / _NANOS


def decode_limits(message: task_pb2.TaskLimits) -> TaskLimits:
    """The limits. Fields that are absent are None."""
    return TaskLimits(
        max_duration_seconds=duration_seconds(message.max_duration)
        if message.HasField("max_duration")
        else None,
        max_total_tokens=message.max_total_tokens if message.HasField("max_total_tokens") else None,
        force_after_seconds=duration_seconds(message.force_after)
        if message.HasField("force_after")
        else None,
    )


def limits_fields(limits: TaskLimits) -> Any:
    """The fields for the constructor of the message; None without limits."""
    if limits.max_duration_seconds is None and limits.max_total_tokens is None:
        return None
    return {
        "max_duration": _duration_fields(limits.max_duration_seconds),
        "max_total_tokens": limits.max_total_tokens,
        "force_after": _duration_fields(limits.force_after_seconds),
    }


def _duration_fields(seconds: float | None) -> Any:
    if seconds is None:
        return None
    whole, nanos = divmod(round(seconds * _NANOS), _NANOS)
    return {"seconds": whole, "nanos": nanos}
