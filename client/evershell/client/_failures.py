"""Turns the failures of gRPC into the errors of the client."""

from typing import Any

import grpc
from evershell.workspace.v1 import error_pb2
from google.protobuf.json_format import MessageToDict
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from evershell.client.errors import BY_SLUG, RULES, CallError

# Details that the service sends as text over gRPC, and as JSON over REST.
_BOOLEANS = {"true": True, "false": False}
_LISTS = ("required",)


def from_rpc_error(error: grpc.RpcError) -> CallError:
    """The error that the details of the status describe, else one from the gRPC code."""
    assert isinstance(error, grpc.Call | grpc.aio.AioRpcError)
    # `from_call` raises if a proxy has replaced the code or the text of the service's status.
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
    """The error that is the last message of a stream."""
    values = error_pb2.Error.ErrorCode.DESCRIPTOR.values_by_number
    slug = values[error.code].name if error.code in values else "internal"
    return BY_SLUG.get(slug, BY_SLUG["internal"])(
        error.message, error.request_id, MessageToDict(error.details)
    )


def metadata_of(error: BaseException) -> tuple[Any, ...]:
    """The metadata of a call that failed; empty if there was none."""
    if isinstance(error, grpc.Call | grpc.aio.AioRpcError):
        return error.initial_metadata(), error.trailing_metadata()
    return ()


def request_id_of(*metadata: Any) -> str:
    """The request id in the metadata of an answer; empty if it has none."""
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
    # A newer service may have slugs that this client does not know.
    error = BY_SLUG.get(info.reason.lower()) or _class_of(code)
    return error(status.message, request.request_id or request_id, details)


def _typed(name: str, value: str) -> Any:
    return value.split(",") if name in _LISTS else _BOOLEANS.get(value, value)


def _class_of(code: grpc.StatusCode) -> type[CallError]:
    """The class of the slug with the name of the gRPC code, else of the code's fallback slug."""
    slug = code.name.lower()
    if slug not in BY_SLUG:
        slug = next(
            (
                name
                for name, rule in RULES.items()
                if rule.grpc == code.value[0] and rule.fallback and name in BY_SLUG
            ),
            "internal",
        )
    return BY_SLUG[slug]
