"""Derives the edge's own error answers from the error codes, for REST and for gRPC."""

import base64
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from repeats import CEL, IS_REPEATABLE
from source import Rule

DOMAIN = "evershell.ai"
# The caller may have set no deadline, so the text does not mention one.
SLOW = "The service did not answer in time. The call may have had its effect."
# By error code: the messages that have facts about the request. They are for REST answers whose
# code is chosen by the HTTP status alone. The message of any other code is the first sentence of
# the code's comment.
# %LOCAL_REPLY_BODY% is the text of the route that answers, or Envoy's own text, which says why it
# cannot read a request.
MESSAGES_WITH_FACTS = {
    "deadline_exceeded": SLOW,
    "validation_error": "The request cannot be read: %LOCAL_REPLY_BODY%",
    "not_found": "No method has this path.%LOCAL_REPLY_BODY%",
    "method_not_allowed": "The path does not support this HTTP method.%LOCAL_REPLY_BODY%",
    "payload_too_large": (
        "The body is larger than %METADATA(ROUTE:evershell:max_request_bytes)% bytes, the limit of "
        "this method."
    ),
}
# The messages of answers to which Envoy adds no text.
MESSAGES_WITHOUT_FACTS = {"validation_error": "The request cannot be read."}
# The only one of the edge's own errors after which the edge advises a retry.
RETRYABLE = "unavailable"
RETRY_AFTER_SECONDS = 1
# Sets the response header to the request's id, or to a new id if the request has none. The envelope
# takes its id from this response header.
REQUEST_ID = {
    "x-request-id": (
        '%COALESCE({"operators":[{"command":"REQ","param":"x-request-id"},"UNIQUE_ID"]})%'
    )
}
# For requests that could not be read. Such a request has no id yet, or one that its client chose.
NEW_REQUEST_ID = {"x-request-id": "%UNIQUE_ID%"}
# The HTTP statuses that Envoy gives only to requests that it could not read.
UNREAD_STATUSES = (426, 431)
# The status with which worker_headers.lua and the routes of the gRPC listener refuse a header.
UNPRINTABLE_STATUS = 422

# Envoy's own answers to gRPC calls: the comparison and the HTTP status that select an answer, the
# HTTP status to send instead, the error code, and a message that replaces the code's own message
# unless it is empty.
GRPC_REPLIES = (
    (
        "EQ",
        UNPRINTABLE_STATUS,
        400,
        "validation_error",
        "A header contains characters that are not printable ASCII, or a binary or gRPC header is "
        "malformed.",
    ),
    ("EQ", 408, 408, "request_timeout", ""),
    ("EQ", 504, 504, "deadline_exceeded", SLOW),
    ("GE", 502, 503, RETRYABLE, ""),
    (
        "EQ",
        404,
        404,
        "method_not_allowed",
        "The edge does not serve this method. Server reflection lists the services.",
    ),
    (
        "GE",
        400,
        400,
        "internal",
        "The edge cannot read this call. Its log has the call under the request id.",
    ),
)
# Refusals before routing, for which Envoy has no text: the error code, a regular expression that
# matches Envoy's RESPONSE_CODE_DETAILS, and a message that replaces the code's own message unless
# it is empty.
EARLY_REFUSALS = (
    (
        "validation_error",
        "^path_normalization_failed",
        "The path contains an escaped slash or backslash, %%00 or a fragment.",
    ),
    (
        "validation_error",
        "underscore$",
        "The name of a header contains an underscore. Use a hyphen: x-name instead of x_name.",
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


def header(name: str, value: str) -> dict[str, Any]:
    """Sets a header; replaces any previous value."""
    return {"header": {"key": name, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}


def local_replies(rules: list[Rule]) -> list[dict[str, Any]]:
    """The mappers that give the edge's own answers their envelopes. Envoy uses the first match."""
    by_status = defaultdict(list)
    for rule in rules:
        message = MESSAGES_WITH_FACTS.get(rule.slug, rule.message)
        by_status[rule.http].append(replace(rule, message=message))
    chosen = {status: _most_general(group) for status, group in sorted(by_status.items())}
    by_slug = {rule.slug: rule for rule in rules}
    mappers = [
        _early_refusal(by_slug[code], details, message or by_slug[code].message)
        for code, details, message in EARLY_REFUSALS
    ]
    for status, chosen_rule in chosen.items():
        if chosen_rule:
            request_id = NEW_REQUEST_ID if status in UNREAD_STATUSES else REQUEST_ID
            mappers.append(_mapper("EQ", status, chosen_rule, request_id))
    # Envoy answers 501 to an unknown transfer encoding, which is an error of the client.
    encoding = replace(
        by_slug["validation_error"],
        message="The transfer encoding is not supported; the only one is chunked.",
    )
    mappers.append(_mapper("EQ", 501, encoding, NEW_REQUEST_ID) | {"status_code": encoding.http})
    # All other statuses: an error of the service (500 and above) or of the client (400 and above).
    last = [
        _mapper("GE", rule.http, rule) | {"status_code": rule.http}
        for rule in (chosen[500], chosen[400])
        if rule
    ]
    return mappers + last


def _most_general(candidates: list[Rule]) -> Rule | None:
    """Chooses the error code for an answer of which only the status is known.

    Prefers the edge's own codes, then the code that has the name of its gRPC code, then the
    fallback, then any candidate. None if this leaves several codes.
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
    headers = dict(request_id)
    if rule.http < 500:
        # Envoy answers a request with the content type application/grpc in gRPC, where a 400
        # becomes INTERNAL. The Lua filter restores the HTTP status from this header.
        headers["x-evershell-status"] = str(rule.http)
    if rule.slug == RETRYABLE:
        # The Lua filter removes the header if the call can be repeated. The filter sees all answers
        # that are made after routing.
        headers["x-should-retry"] = "false"
    if rule.http == 401:
        headers["www-authenticate"] = "Bearer"
    return {
        "filter": _status_filter("local_reply", comparison, status),
        "headers_to_add": [header(name, value) for name, value in headers.items()],
        "body_format_override": {"json_format": envelope},
    }


def _early_refusal(rule: Rule, details: str, message: str) -> dict[str, Any]:
    """The mapper for a refusal before routing. `details` is a regular expression that matches
    Envoy's RESPONSE_CODE_DETAILS.
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
    """The answers of the Lua filter to calls that a worker's gRPC library refused.

    The key is the gRPC status.
    """
    by_status = defaultdict(list)
    for rule in rules:
        if not rule.edge_only:
            by_status[rule.grpc].append(rule)
    # A worker's gRPC library cancels a call that waits too long for its start, or when the worker
    # shuts down. The caller cannot have cancelled the call, because it would not see this answer.
    by_status[code_pb2.CANCELLED] = by_status[code_pb2.UNAVAILABLE]
    # A worker answers UNIMPLEMENTED to the methods of an optional service that it does not run. The
    # edge has routes for these methods nevertheless.
    by_status[code_pb2.UNIMPLEMENTED] = [rule for rule in rules if rule.slug == "not_found"]
    chosen = {grpc: _most_general(group) for grpc, group in sorted(by_status.items())}
    return {
        str(grpc): {
            "code": rule.slug,
            "status": str(rule.http),
            "message": MESSAGES_WITHOUT_FACTS.get(rule.slug, rule.message),
        }
        for grpc, rule in chosen.items()
        if rule
    }


def grpc_local_replies(rules: list[Rule], size_limits: Mapping[str, int]) -> list[dict[str, Any]]:
    """The mappers that give Envoy's own answers to gRPC calls a status with details.

    `size_limits` maps the path of a method, or a prefix that ends with a slash, to the size limit
    of its requests, in bytes.
    """
    by_slug = {rule.slug: rule for rule in rules}
    mappers = []
    for path, limit in size_limits.items():
        text = f"The request is larger than {limit:,} bytes, the limit of this method."
        kind = "prefix" if path.endswith("/") else "exact"
        method = {"header_filter": {"header": {"name": ":path", "string_match": {kind: path}}}}
        mappers.append(_grpc_mapper(("EQ", 413), 400, by_slug["validation_error"], text, method))
    for comparison, status, new_status, code, message in GRPC_REPLIES:
        when, rule = (comparison, status), by_slug[code]
        text = message or rule.message
        if code == RETRYABLE:
            mapper = _grpc_mapper(when, new_status, rule, text, IS_REPEATABLE, is_repeatable=True)
            mappers.append(mapper)
        mappers.append(_grpc_mapper(when, new_status, rule, text))
    return mappers


def _grpc_mapper(
    when: tuple[str, int],
    new_status: int,
    rule: Rule,
    text: str,
    *filters: dict[str, Any],
    is_repeatable: bool = False,
) -> dict[str, Any]:
    request_id = NEW_REQUEST_ID if when[1] == 400 else REQUEST_ID
    headers = {
        # For most HTTP statuses, Envoy itself would set another gRPC status.
        "grpc-status": str(rule.grpc),
        "grpc-status-details-bin": _rich_status(rule, text, is_repeatable),
    }
    headers |= request_id
    if is_repeatable:
        headers["retry-after"] = str(RETRY_AFTER_SECONDS)
    return {
        "filter": {
            "and_filter": {"filters": [_status_filter("grpc_reply", *when), GRPC_CALL, *filters]}
        },
        "status_code": new_status,
        "headers_to_add": [header(name, value) for name, value in headers.items()],
        "body_format_override": {"text_format_source": {"inline_string": text}},
    }


def _rich_status(rule: Rule, text: str, is_repeatable: bool) -> str:
    """The value of grpc-status-details-bin. It has no RequestInfo, because all calls share it."""
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=rule.slug.upper(), domain=DOMAIN)]
    if is_repeatable:
        delay = duration_pb2.Duration(seconds=RETRY_AFTER_SECONDS)
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    packed = []
    for detail in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    status = status_pb2.Status(code=rule.grpc, message=text, details=packed)
    return base64.b64encode(status.SerializeToString(deterministic=True)).decode().rstrip("=")
