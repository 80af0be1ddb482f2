"""Checks that apply to every answer of the REST listener."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
from evershell.workspace.v1 import error_pb2
from google.rpc import code_pb2

CODES = error_pb2.Error.ErrorCode.DESCRIPTOR.values
SLUGS = [value.name for value in CODES if value.number]
# No answer may have headers with these prefixes: such headers are Envoy's own, or are sent only
# between Envoy and the workers.
INTERNAL = ("grpc-", "x-evershell-", "x-envoy-")
PUBLIC = {"x-request-id", "x-content-type-options", "x-should-retry"}
# No answer may contain these words. They are in the stub's internal messages, in Envoy's own texts,
# and in addresses.
SECRETS = ("secret", "127.0.0.1", "upstream")
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
SUCCESSES = {200, 201, 202, 204}
# The content type of answers to A2A clients.
A2A_TYPE = "application/a2a+json"


def rule(slug: str) -> error_pb2.ErrorRule:
    """Returns the options of an error code."""
    value = error_pb2.Error.ErrorCode.DESCRIPTOR.values_by_name[slug]
    return value.GetOptions().Extensions[error_pb2.rule]


SERVICE_SLUGS = [slug for slug in SLUGS if not (rule(slug).edge_only or rule(slug).a2a_only)]


@dataclass(frozen=True)
class Answer:
    """An answer as the client received it. Header names are in lower case.

    `trailers` is empty if the client does not return trailers.
    """

    status: int
    headers: Sequence[tuple[str, str]]
    body: bytes
    trailers: Sequence[tuple[str, str]] = field(default=())

    def header(self, name: str) -> str | None:
        """The header's value, or None. Raises AssertionError if the header is repeated."""
        values = [value for known, value in self.headers if known == name]
        assert len(values) <= 1, (name, values)
        return values[0] if values else None


def as_answer(response: httpx.Response) -> Answer:
    """Converts an answer that httpx received. httpx does not return trailers."""
    return Answer(response.status_code, response.headers.multi_items(), response.content)


def check(answer: Answer, *, to_head: bool = False) -> dict[str, Any] | None:
    """Checks what all answers have in common. Returns the error; None if the call succeeded.

    If `to_head` is set, the request was HEAD, and the returned error is empty. Raises
    AssertionError.
    """
    for name, _ in (*answer.headers, *answer.trailers):
        assert not name.startswith(INTERNAL), name
        assert not name.startswith("x-") or name in PUBLIC, name
    length = answer.header("content-length")
    if to_head:
        assert answer.body == b""
    elif length is not None:
        assert int(length) == len(answer.body)
    if answer.status in SUCCESSES:
        _check_success(answer)
        return None
    return _check_error(answer, to_head=to_head)


def _check_success(answer: Answer) -> None:
    kind = answer.header("content-type")
    if not answer.body:
        return
    assert answer.header("x-request-id")
    if kind in ("application/json", A2A_TYPE):
        assert isinstance(json.loads(answer.body), dict)
    else:
        assert kind == "text/event-stream", kind


def _check_error(answer: Answer, *, to_head: bool) -> dict[str, Any]:
    assert answer.status >= 400, answer
    kind = answer.header("content-type")
    assert kind in ("application/json", A2A_TYPE), answer
    request_id = answer.header("x-request-id") or ""
    # The edge generates a UUID as the request id, and never uses a value that the client has sent.
    assert UUID.fullmatch(request_id), request_id
    if to_head:
        return {}
    text = answer.body.decode()
    assert not [secret for secret in SECRETS if secret in text], text
    envelope = json.loads(text)
    assert set(envelope) == {"error"}, text
    error: dict[str, Any] = envelope["error"]
    if kind == A2A_TYPE:
        error = _as_envelope(error, answer.status)
    assert (
        {"code", "message", "request_id"}
        <= set(error)
        <= {"code", "message", "request_id", "details"}
    ), text
    assert error["code"] in SLUGS, text
    assert answer.status == rule(error["code"]).http, text
    assert error["request_id"] == request_id
    assert len(error["message"]) > 10
    return error


def _as_envelope(error: dict[str, Any], status: int) -> dict[str, Any]:
    """Converts an error of the edge from the format of A2A to the error envelope.

    In A2A, an error is a google.rpc.Status (https://google.aip.dev/193).
    """
    info, request = error["details"]
    assert error["code"] == status
    assert error["status"] in dict(code_pb2.Code.items())
    assert info["@type"] == "type.googleapis.com/google.rpc.ErrorInfo"
    assert info["domain"] == "evershell.ai"
    assert request["@type"] == "type.googleapis.com/google.rpc.RequestInfo"
    return {
        "code": info["reason"].lower(),
        "message": error["message"],
        "request_id": request["requestId"],
    }
