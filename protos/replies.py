"""What the edge itself says when it refuses a call, derived from the error codes: envelopes for
REST, rich statuses for gRPC.
"""

import base64
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from source import Rule

DOMAIN = "evershell.ai"
# Every other message is the first sentence of its code's comment. The edge's reader says what it
# does not like about a request.
MESSAGES = {
    "validation_error": "The request cannot be read: %LOCAL_REPLY_BODY%",
    "payload_too_large": "The body is larger than the %METADATA(ROUTE:evershell:max_request_bytes)% bytes that this method takes.",
}
# The same, where nothing says what it does not like.
BARE_MESSAGES = {"validation_error": "The request cannot be read."}
# Of all that the edge answers by itself, this alone passes by waiting.
RETRYABLE = "unavailable"
RETRY_AFTER_SECONDS = 1
# For the header and for the body.
REQUEST_ID = {
    "x-request-id": '%COALESCE({"operators":[{"command":"REQ","param":"x-request-id"},"UNIQUE_ID"]})%'
}
# A request that could not be read has no id yet, or one that its client has chosen.
NEW_REQUEST_ID = {"x-request-id": "%UNIQUE_ID%"}
NEVER_READ = (426, 431)

# What Envoy answers to callers of gRPC: from which HTTP status on, the code that this is, and what
# to say if not the code's own comment. Envoy itself turns just these statuses into the gRPC status
# of that code.
GRPC_REPLIES = (
    ("GE", 502, 503, RETRYABLE, ""),
    (
        "EQ",
        404,
        404,
        "method_not_allowed",
        "There is no such method here. Server reflection lists the services that there are.",
    ),
    (
        "GE",
        400,
        400,
        "internal",
        "The edge cannot read this call. The request id finds it in its log.",
    ),
)
CEL = "type.googleapis.com/envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter"
# By Envoy's names for what is wrong.
UNREAD = (
    (
        "validation_error",
        "^path_normalization_failed",
        "The path holds what no path may: an escaped slash or backslash, %%00 or a fragment.",
    ),
    (
        "validation_error",
        "underscore$",
        "A header's name holds an underscore. Write a hyphen: x-name in place of x_name.",
    ),
    ("validation_error", "^missing_host_header", "The request has no Host header."),
    ("validation_error", "^http", "The request is not valid HTTP: %RESPONSE_CODE_DETAILS%."),
    ("not_found", "^absolute_path_rejected", ""),
)
GRPC_CALL = {
    "header_filter": {
        "header": {"name": "content-type", "string_match": {"prefix": "application/grpc"}}
    }
}


def _headers(rule: Rule) -> dict[str, str]:
    """What an answer with this code has beside its body."""
    return {"retry-after": str(RETRY_AFTER_SECONDS)} if rule.slug == RETRYABLE else {}


def header(name: str, value: str) -> dict[str, Any]:
    """A header that is set, whatever was there."""
    return {"header": {"key": name, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}


def local_replies(rules: list[Rule]) -> list[dict[str, Any]]:
    """The envelope for each status with which the edge itself may answer."""
    by_status = defaultdict(list)
    for rule in rules:
        by_status[rule.http].append(replace(rule, message=MESSAGES.get(rule.slug, rule.message)))
    chosen = {status: _plainest(candidates) for status, candidates in sorted(by_status.items())}
    by_slug = {rule.slug: rule for rule in rules}
    mappers = [
        _unread(by_slug[code], details, message or by_slug[code].message)
        for code, details, message in UNREAD
    ]
    for status, chosen_rule in chosen.items():
        if chosen_rule:
            mappers.append(
                _mapper(
                    "EQ",
                    status,
                    chosen_rule,
                    NEW_REQUEST_ID if status in NEVER_READ else REQUEST_ID,
                )
            )
    # Whatever Envoy calls it, this is the client's fault.
    encoding = replace(
        by_slug["validation_error"],
        message="The transfer encoding is none that there is; chunked is the only one.",
    )
    mappers.append(_mapper("EQ", 501, encoding, NEW_REQUEST_ID) | {"status_code": encoding.http})
    # What is left is not in the table: another fault of the client's or another fault of ours.
    last = [
        _mapper("GE", rule.http, rule) | {"status_code": rule.http}
        for rule in (chosen[500], chosen[400])
        if rule
    ]
    return mappers + last


def _plainest(candidates: list[Rule]) -> Rule | None:
    """The edge's own code, or the one named as its gRPC code, or the fallback, or the only one; of
    several others, none.
    """
    own = [rule for rule in candidates if rule.edge_only]
    same = [rule for rule in candidates if rule.slug.upper() == code_pb2.Code.Name(rule.grpc)]
    fallback = [rule for rule in candidates if rule.fallback]
    chosen = own or same or fallback or candidates
    return chosen[0] if len(chosen) == 1 else None


def _mapper(
    comparison: str, status: int, rule: Rule, request_id: dict[str, str] = REQUEST_ID
) -> dict[str, Any]:
    envelope = {
        "error": {"code": rule.slug, "message": rule.message, "request_id": "%RESP(x-request-id)%"}
    }
    headers = request_id | _headers(rule)
    return {
        "filter": _status_filter("local_reply", comparison, status),
        "headers_to_add": [header(name, value) for name, value in headers.items()],
        "body_format_override": {"json_format": envelope},
    }


def _unread(rule: Rule, details: str, message: str) -> dict[str, Any]:
    """What Envoy refuses before it looks at the routes: it has no text, but a name for what is
    wrong, which `details` matches.
    """
    expression = {"@type": CEL, "expression": f"response.code_details.matches('{details}')"}
    named = {
        "extension_filter": {
            "name": "envoy.access_loggers.extension_filters.cel",
            "typed_config": expression,
        }
    }
    mapper = _mapper("EQ", rule.http, replace(rule, message=message), NEW_REQUEST_ID)
    return mapper | {"filter": {"and_filter": {"filters": [mapper["filter"], named]}}}


def _status_filter(place: str, comparison: str, status: int) -> dict[str, Any]:
    threshold = {
        "default_value": status,
        "runtime_key": f"evershell.{place}.{comparison.lower()}_{status}",
    }
    return {"status_code_filter": {"comparison": {"op": comparison, "value": threshold}}}


def grpc_errors(rules: list[Rule]) -> dict[str, dict[str, str]]:
    """By gRPC status: what the Lua filter answers when a worker's gRPC library, and not the
    service, refused a call.
    """
    by_status = defaultdict(list)
    for rule in rules:
        if not rule.edge_only:
            by_status[rule.grpc].append(rule)
    # A worker that ends cancels what it has not taken yet; a caller that cancels does not wait for
    # an answer.
    by_status[code_pb2.CANCELLED] = by_status[code_pb2.UNAVAILABLE]
    chosen = {grpc: _plainest(candidates) for grpc, candidates in sorted(by_status.items())}
    return {
        str(grpc): {
            "code": rule.slug,
            "status": str(rule.http),
            "message": BARE_MESSAGES.get(rule.slug, rule.message),
            "retry_after": _headers(rule).get("retry-after", ""),
        }
        for grpc, rule in chosen.items()
        if rule
    }


def grpc_local_replies(rules: list[Rule], size_limits: Mapping[str, int]) -> list[dict[str, Any]]:
    """Replies of the gRPC listener: message and details for gRPC calls, and for all others the
    replies of the REST listener.

    `size_limits` maps the path of a method to the size limit of its requests.
    """
    by_slug = {rule.slug: rule for rule in rules}
    mappers = []
    for path, limit in size_limits.items():
        text = f"The request is larger than the {limit:,} bytes that this method takes."
        method = {"header_filter": {"header": {"name": ":path", "string_match": {"exact": path}}}}
        mapper = _grpc_mapper(("EQ", 413), 400, by_slug["validation_error"], text, method)
        # Set directly, because Envoy maps no HTTP status to INVALID_ARGUMENT.
        mapper["headers_to_add"].append(
            header("grpc-status", str(by_slug["validation_error"].grpc))
        )
        mappers.append(mapper)
    for comparison, status, shown, code, message in GRPC_REPLIES:
        mappers.append(
            _grpc_mapper(
                (comparison, status), shown, by_slug[code], message or by_slug[code].message
            )
        )
    return mappers + local_replies(rules)


def _grpc_mapper(
    when: tuple[str, int], shown: int, rule: Rule, text: str, *more: dict[str, Any]
) -> dict[str, Any]:
    request_id = NEW_REQUEST_ID if when[1] == 400 else REQUEST_ID
    headers = {"grpc-status-details-bin": _rich_status(rule, text)} | request_id | _headers(rule)
    return {
        "filter": {
            "and_filter": {"filters": [_status_filter("grpc_reply", *when), GRPC_CALL, *more]}
        },
        "status_code": shown,
        "headers_to_add": [header(name, value) for name, value in headers.items()],
        "body_format_override": {"text_format_source": {"inline_string": text}},
    }


def _rich_status(rule: Rule, text: str) -> str:
    """google.rpc.Status as a header carries it; without RequestInfo, since it is the same for every
    call.
    """
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=rule.slug.upper(), domain=DOMAIN)]
    if rule.slug == RETRYABLE:
        delay = duration_pb2.Duration(seconds=RETRY_AFTER_SECONDS)
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    packed = []
    for detail in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    status = status_pb2.Status(code=rule.grpc, message=text, details=packed)
    return base64.b64encode(status.SerializeToString(deterministic=True)).decode().rstrip("=")
