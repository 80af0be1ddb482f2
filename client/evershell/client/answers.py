"""The answers of the service: a page of a list, the answer to an attempt, an event of an
organization, and errors.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import grpc
from evershell.workspace.v1 import error_pb2
from google.protobuf.json_format import MessageToDict
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from evershell.client.errors import BY_CODE, RULES, CallError
from evershell.client.events import Event

T = TypeVar("T")
# Over gRPC, the service sends all details as text. The client converts the text to the types that
# REST has.
_BOOLEANS = {"true": True, "false": False}
_LISTS = ("required",)


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page of a list. `next_page_token` is None on the last page."""

    items: tuple[T, ...]
    next_page_token: str | None


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one attempt. A call that is repeated gets several answers."""

    rpc: str
    """The method of the API, for example `CancelTask`."""
    request_id: str
    """Identifies the attempt in the log of the service; empty if it did not reach the service."""
    metadata: Mapping[str, str | bytes] = field(default_factory=dict, hash=False)
    """The initial and the trailing metadata. Names that end with `-bin` have bytes."""
    seconds: float = 0.0
    """How long the attempt took."""
    error: CallError | None = None
    """Why the attempt failed; None if it succeeded."""


@dataclass(frozen=True, slots=True)
class OrganizationEvent:
    """An event of a workspace of the organization, or a sign that there was none."""

    position: int
    """How far the stream has come. Positions grow, but have gaps."""
    event: Event | None
    """None if the service has only sent the position."""


OnAnswer = Callable[[Answer], None]


def from_rpc_error(error: grpc.RpcError) -> CallError:
    """The error that the status details describe; without details, the error for the gRPC code."""
    assert isinstance(error, grpc.Call | grpc.aio.AioRpcError)
    # `from_call` raises ValueError if a proxy has replaced the code or the text of the status.
    try:
        status = rpc_status.from_call(error)
    except ValueError:
        status = None
    request_id = request_id_of(error.trailing_metadata(), error.initial_metadata())
    if status is None:
        text = error.details() or "The connection broke."
        return _class_of(error.code())(text, request_id, is_from_service=False)
    return _from_status(status, error.code(), request_id)


def from_stream_error(error: error_pb2.Error) -> CallError:
    """The client's error for an error in the last message of a stream."""
    values = error_pb2.Error.ErrorCode.DESCRIPTOR.values_by_number
    name = values[error.code].name if error.code in values else "internal"
    return BY_CODE.get(name, BY_CODE["internal"])(
        error.message, error.request_id, MessageToDict(error.details)
    )


def metadata_of(error: BaseException) -> tuple[Any, ...]:
    """The metadata of a failed call; empty if the error has no metadata."""
    if isinstance(error, grpc.Call | grpc.aio.AioRpcError):
        return error.initial_metadata(), error.trailing_metadata()
    return ()


def request_id_of(*metadata: Any) -> str:
    """The request id in the metadata of an answer; empty if the metadata has none."""
    for each in metadata:
        for key, value in each or ():
            if key == "x-request-id":
                return str(value)
    return ""


def _from_status(status: status_pb2.Status, code: grpc.StatusCode, request_id: str) -> CallError:
    info, request, bad, retry = (
        error_details_pb2.ErrorInfo(),
        error_details_pb2.RequestInfo(),
        error_details_pb2.BadRequest(),
        error_details_pb2.RetryInfo(),
    )
    # Unpack returns False and changes nothing if the detail has another type.
    for detail in status.details:
        any(detail.Unpack(known) for known in (info, request, bad, retry))
    details = {name: _typed(name, value) for name, value in info.metadata.items()}
    if bad.field_violations:
        details["fields"] = {each.field: each.description for each in bad.field_violations}
    if retry.HasField("retry_delay"):
        details["retry_after_seconds"] = retry.retry_delay.ToMilliseconds() / 1000
    # A newer service may send a code that this client does not know.
    error = BY_CODE.get(info.reason.lower()) or _class_of(code)
    return error(status.message, request.request_id or request_id, details)


def _typed(name: str, value: str) -> Any:
    return value.split(",") if name in _LISTS else _BOOLEANS.get(value, value)


def _class_of(code: grpc.StatusCode) -> type[CallError]:
    """The error class with the name of the gRPC code, or else the fallback for this gRPC code."""
    name = code.name.lower()
    if name not in BY_CODE:
        name = next(
            (
                name
                for name, rule in RULES.items()
                if rule.grpc == code.value[0] and rule.fallback and name in BY_CODE
            ),
            "internal",
        )
    return BY_CODE[name]
