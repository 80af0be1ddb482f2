"""Converts times, durations and amounts between messages and the core."""

from datetime import UTC, datetime
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.type.money_pb2 import Money

from evershell.core import errors, money

# The end of the year 9999, the last year of RFC 3339.
_MAX_SECONDS = 253_402_300_799
_NANOS = 1_000_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def timestamp(moment: datetime | None) -> Any:
    """The time for a Timestamp field in the constructor of a message; None for an absent field.

    Contrary to its type hints, the constructor accepts a mapping with the fields of a message. A
    message would be copied by serializing and parsing it, which takes longer.
    """
    if moment is None:
        return None
    since = moment - _EPOCH
    return {
        "seconds": since.days * 86_400 + since.seconds,
        "nanos": since.microseconds * 1000,
    }


def decode_time(field: str, time: Timestamp) -> datetime:
    """The time. Raises Failure validation_error, which names the field."""
    if not 0 <= time.seconds <= _MAX_SECONDS:
        raise errors.invalid({field: "must be within the years 1970 to 9999"})
    return time.ToDatetime(UTC)


def duration_seconds(duration: Duration) -> float:
    """The duration in seconds."""
    return duration.seconds + duration.nanos / _NANOS


def duration_fields(seconds: float | None) -> Any:
    """The fields of a Duration, for the constructor of a message; None for an absent field."""
    if seconds is None:
        return None
    whole, nanos = divmod(round(seconds * _NANOS), _NANOS)
    return {"seconds": whole, "nanos": nanos}


def decode_nanos(field: str, amount: Money) -> int:
    """The amount in nano-dollars. Raises Failure validation_error, which names the field."""
    if amount.currency_code != money.CURRENCY:
        raise errors.invalid({field: f"must have the currency_code {money.CURRENCY}"})
    if not 0 <= amount.nanos < _NANOS or amount.units < 0:
        raise errors.invalid({field: f"must have units from 0 and nanos from 0 to {_NANOS - 1:,}"})
    return int(amount.units) * _NANOS + int(amount.nanos)


def money_fields(nanos: int | None) -> Any:
    """The fields of a Money, for the constructor of a message; None for an absent field."""
    return None if nanos is None else money.fields(nanos)


def rest_fields(message: Message) -> dict[str, Any]:
    """The fields of the message as REST shows them."""
    return MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
