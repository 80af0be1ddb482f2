"""Fields of requests. The client refuses what no message can hold, and an empty id for "any"."""

import math
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from typing import Any, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from evershell.client.errors import ConfigurationError, ValidationError

M = TypeVar("M", bound=Message)
T = TypeVar("T")

Seconds = float | timedelta

# gRPC takes later deadlines for deadlines that have passed.
LONGEST_SECONDS = 1e9


def request(kind: type[M], **fields: Any) -> M:
    """The request. Raises ValidationError, which names the field that it cannot hold."""
    try:
        return kind(**fields)
    except ValueError:
        for name, value in fields.items():
            valid(name, partial(kind, **{name: value}))
        raise


def valid(name: str, make: Callable[[], T]) -> T:
    """The value of a field. Raises ValidationError if it cannot be made."""
    try:
        return make()
    except UnicodeError as error:
        raise invalid(name, "is not valid Unicode") from error
    except (ValueError, OverflowError) as error:
        raise invalid(name, "is out of range") from error


def invalid(name: str, problem: str) -> ValidationError:
    """The error of a field that is not valid. The call has not been made."""
    return ValidationError(
        f"The request is not valid. {name}: {problem}.",
        details={"fields": {name: problem}},
        is_from_service=False,
    )


def optional(name: str, value: str | None) -> str | None:
    """The value of a field that narrows a call. Raises ValidationError if it is empty."""
    if value == "":
        raise invalid(name, "must not be empty; leave it out for any")
    return value


def seconds(time: Seconds) -> float:
    """The duration in seconds. Raises ConfigurationError."""
    found = time.total_seconds() if isinstance(time, timedelta) else float(time)
    if math.isnan(found):
        raise ConfigurationError("A duration must be a number, not nan.")
    return found


def duration(name: str, time: Seconds | None) -> Duration | None:
    """The duration of a field, to the millisecond. Raises what `seconds` and `valid` raise."""
    if time is None:
        return None
    made = Duration()
    valid(name, lambda: made.FromMilliseconds(round(seconds(time) * 1000)))
    return made


def timestamp(name: str, moment: datetime | None) -> Timestamp | None:
    """The time of a field; one without a zone is local time. Raises ValidationError."""
    if moment is None:
        return None
    made = Timestamp()
    valid(name, lambda: made.FromDatetime(moment.astimezone()))
    return made
