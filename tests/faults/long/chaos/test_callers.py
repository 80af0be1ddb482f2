"""Reading of REST answers."""

import json

import pytest

from tests.faults.long.chaos.callers import rest_reply

ERROR = {
    "code": "workspace_busy",
    "message": "…",
    "request_id": "r1",
    "details": {"task_id": "task_1"},
}
HEADERS = {"x-request-id": "r1"}


def test_a_valid_envelope_is_read() -> None:
    reply = rest_reply(409, HEADERS, json.dumps({"error": ERROR}))
    assert (reply.slug, reply.body, reply.problem) == ("workspace_busy", {"task_id": "task_1"}, "")


@pytest.mark.parametrize(
    ("status", "headers", "text", "problem"),
    [
        (503, HEADERS, "no healthy upstream", "503 has neither"),
        (200, HEADERS, "", "200 has neither"),
        (409, HEADERS, json.dumps({"error": "busy"}), "409 has neither"),
        (
            409,
            HEADERS,
            json.dumps({"error": {**ERROR, "code": "no_such_slug"}}),
            "not of the closed set",
        ),
        (503, HEADERS, json.dumps({"error": ERROR}), "came with status 503"),
        (409, {}, json.dumps({"error": ERROR}), "not that of the header"),
    ],
)
def test_a_malformed_answer_is_reported(
    status: int, headers: dict[str, str], text: str, problem: str
) -> None:
    assert problem in rest_reply(status, headers, text).problem
