"""Encodes a failure for each protocol: as google.rpc.Status, and as the REST envelope.

The gRPC code and the HTTP status of a slug are options of its enum value in error.proto.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
from evershell.workspace.v1 import error_pb2
from google.protobuf import any_pb2, duration_pb2, struct_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from evershell.core.errors import Failure

DOMAIN = "evershell.ai"

RULES: dict[str, error_pb2.ErrorRule] = {
    value.name: value.GetOptions().Extensions[error_pb2.rule]
    for value in error_pb2.Error.ErrorCode.DESCRIPTOR.values
    if value.number
}
_CODES_BY_NUMBER = {code.value[0]: code for code in grpc.StatusCode}
GRPC_CODES = {slug: _CODES_BY_NUMBER[rule.grpc] for slug, rule in RULES.items()}
# The trailer that carries the status with its details.
DETAILS_TRAILER = "grpc-status-details-bin"


def rich_status(failure: Failure, request_id: str) -> status_pb2.Status:
    """The status with its details (https://google.aip.dev/193).

    The details are ErrorInfo, RequestInfo, the standard details of the status's code, and RetryInfo
    if the failure says when to retry.
    """
    rule = RULES[failure.slug]
    info = error_details_pb2.ErrorInfo(
        reason=failure.slug.upper(), domain=DOMAIN, metadata=_flat(failure.details)
    )
    details: list[Message] = [
        info,
        error_details_pb2.RequestInfo(request_id=request_id),
        *_standard_details(failure, rule),
    ]
    return status_pb2.Status(
        code=rule.grpc, message=failure.message, details=[_packed(detail) for detail in details]
    )


def _standard_details(failure: Failure, rule: error_pb2.ErrorRule) -> list[Message]:
    facts = failure.details
    details: list[Message] = []
    match rule.grpc:
        case code_pb2.INVALID_ARGUMENT:
            violations = [
                error_details_pb2.BadRequest.FieldViolation(field=field, description=problem)
                for field, problem in facts.get("fields", {}).items()
            ]
            details.append(error_details_pb2.BadRequest(field_violations=violations))
        case code_pb2.NOT_FOUND:
            resource = error_details_pb2.ResourceInfo(
                resource_type=facts.get("resource_type", ""),
                resource_name=facts.get("resource_name", ""),
                description=failure.message,
            )
            details.append(resource)
        case code_pb2.FAILED_PRECONDITION:
            violation = error_details_pb2.PreconditionFailure.Violation(
                type=failure.slug.upper(),
                subject=facts.get("workspace_id", facts.get("org_id", "")),
                description=failure.message,
            )
            details.append(error_details_pb2.PreconditionFailure(violations=[violation]))
    if "retry_after_seconds" in facts:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(int(facts["retry_after_seconds"] * 1000))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    return details


def _packed(detail: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed


def _flat(details: Mapping[str, Any]) -> dict[str, str]:
    """The details as strings, for ErrorInfo. Leaves out maps, which other details carry."""
    flat: dict[str, str] = {}
    for name, value in details.items():
        match value:
            case str():
                flat[name] = value
            case bool() | int() | float():
                flat[name] = json.dumps(value)
            case list():
                flat[name] = ",".join(value)
    return flat


def envelope_json(failure: Failure, request_id: str) -> str:
    """The body of a REST error. It is ASCII, because it is sent to the edge in a trailer."""
    error: dict[str, Any] = {
        "code": failure.slug,
        "message": failure.message,
        "request_id": request_id,
    }
    if failure.details:
        error["details"] = dict(failure.details)
    return json.dumps({"error": error}, separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class ErrorForm:
    """How the errors of a service are encoded."""

    # `rich_status` makes the status, and `body` the body of a REST error. Both get the failure and
    # the request id.
    rich_status: Callable[[Failure, str], status_pb2.Status]
    body: Callable[[Failure, str], str]
    http_status: Callable[[Failure], int]


ENVELOPE = ErrorForm(rich_status, envelope_json, lambda failure: RULES[failure.slug].http)


def stream_error(failure: Failure, request_id: str) -> error_pb2.Error:
    """The error as the last message of a stream that has sent messages before."""
    error = error_pb2.Error(
        code=error_pb2.Error.ErrorCode.Value(failure.slug),
        message=failure.message,
        request_id=request_id,
    )
    if failure.details:
        details = struct_pb2.Struct()
        details.update(dict(failure.details))
        error.details.CopyFrom(details)
    return error
