"""A JSON body is refused if the transcoder would drop a field of it, with harm."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from evershell.workspace.v1.workspace_service_pb2 import CancelTasksRequest
from google.protobuf.json_format import Parse

from tests.support.edge.answers import as_answer, check
from tests.support.edge.stub import Stub

PATH = "/v1/tasks/cancel"
FILTER = {
    "workspace_ids": ["ws_1", "ws_2"],
    "createdByUserId": "user_1",
    "submitted_by": "key_1",
    "submittedBefore": "2026-01-02T03:04:05Z",
    "metadata": {"team": "a", "fliter": 'in "quotes"'},
}
WHOLE = {"filter": FILTER, "reason": '{"fliter": 1}, \\', "forceAfter": "2s", "dry_run": True}

UNKNOWN = {
    '{"fliter": {"submitted_by": "key_1"}}': "fliter",
    '{"reason": "r", "dry_run": true, "dryrun": true}': "dryrun",
    '{"filter": {"workspaceids": ["ws_1"]}}': "workspaceids",
    '{"filter": {"metadata": {"a": "b"}, "team": "a"}}': "team",
    '{"filter": {}, "metadata": {"team": "a"}}': "metadata",
    '{"force_after": {"secs": 30}}': "secs",
    '{"filter": {"submittedBefore": {"secs": 30}}}': "secs",
    '{"filter ": {}}': "filter?",
    '{"Filter": {}}': "Filter",
    '{"": {}}': "",
    "{fliter: {}}": "fliter",
    "{'fliter': {}}": "fliter",
    '{"f\\u0069lter": {}}': "f?u0069lter",
    '{"filter\\u0041": {}}': "filter?u0041",
    '{"reason": "a\\"", "fliter": {}}': "fliter",
    '{"reason": "a\\\\", "fliter": {}}': "fliter",
    '{"größe": 1}': "gr????e",
    '{"%s": 1}' % ("x" * 5000): "x" * 100,
}


def sent_in(parts: int, body: str) -> Iterator[bytes]:
    """The body in parts of this many bytes."""
    whole = body.encode()
    return (whole[at : at + parts] for at in range(0, len(whole), parts))


@pytest.mark.parametrize("parts", [1, 7, 10_000])
def test_known_fields_pass_unchanged(rest: httpx.Client, stub: Stub, parts: int) -> None:
    for indent in (None, 2):
        body = json.dumps(WHOLE, indent=indent)
        answer = rest.post(PATH, content=sent_in(parts, body))
        assert answer.status_code == 202, answer.text
        assert stub.seen[-1][0] == Parse(body, CancelTasksRequest())


@pytest.mark.parametrize("body", ["", "{}", " { } ", '{"filter": {}}', '{"filter": null}', "null"])
def test_a_body_without_names_passes(rest: httpx.Client, stub: Stub, body: str) -> None:
    expected = rest.post("/v1/workspaces/ws_1/task/cancel", content=body).status_code
    assert rest.post(PATH, content=body).status_code == expected


def test_durations_and_times_pass_as_objects(rest: httpx.Client, stub: Stub) -> None:
    body = {"forceAfter": {"seconds": 3}, "filter": {"submitted_before": {"nanos": 4}}}
    assert rest.post(PATH, json=body).status_code == 202
    request = stub.seen[-1][0]
    assert (request.force_after.seconds, request.filter.submitted_before.nanos) == (3, 4)


def test_a_large_filter_passes(rest: httpx.Client, stub: Stub) -> None:
    ids = [f"ws_{number:0100}" for number in range(5_000)]
    answer = rest.post(PATH, json={"filter": {"workspace_ids": ids}})
    assert answer.status_code == 202, answer.text
    assert list(stub.seen[-1][0].filter.workspace_ids) == ids


@pytest.mark.parametrize("body", UNKNOWN, ids=lambda body: body[:40])
def test_an_unknown_field_is_refused(rest: httpx.Client, stub: Stub, body: str) -> None:
    for parts in (1, 10_000):
        answer = rest.post(PATH, content=sent_in(parts, body))
        error = check(as_answer(answer))
        assert error is not None and not stub.seen, answer.text
        field = UNKNOWN[body]
        assert (answer.status_code, error["code"]) == (400, "validation_error")
        assert error["message"] == (
            f"There is no field of the name {field} in this request. Nothing was done."
        )
        assert error["details"] == {"fields": {field: "is no field of this request"}}


@pytest.mark.parametrize(
    "body", ['{"filter"', '{"fil', "[1]", '{"filter": }', "{{", '{"reason": "']
)
def test_what_is_no_json_is_refused_as_elsewhere(rest: httpx.Client, stub: Stub, body: str) -> None:
    for path in (PATH, "/v1/workspaces/ws_1/task/cancel"):
        answer = rest.post(path, content=body)
        error = check(as_answer(answer))
        assert error is not None and (answer.status_code, error["code"]) == (
            400,
            "validation_error",
        )
        assert not stub.seen


def test_a_hold_refuses_unknown_fields_too(rest: httpx.Client, stub: Stub) -> None:
    known: dict[str, Any] = {"reason": "r", "cancel_running": True}
    assert rest.post("/v1/hold", json=known).status_code == 200
    failed = rest.post("/v1/hold", json={"reason": "r", "cancel_runing": True})
    assert failed.json()["error"]["details"]["fields"] == {
        "cancel_runing": "is no field of this request"
    }


CANCEL, SUBMIT = "/v1/workspaces/ws_1/task/cancel", "/v1/workspaces/ws_1/tasks"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CANCEL, {"force_after": {"secs": 30}}),
        (f"{SUBMIT}/task_1/cancel", {"unknown": {"secs": 1}, "wait": {"secs": 30}}),
        (SUBMIT, {"description": "d", "limits": {"secs": "30s"}}),
        (SUBMIT, {"description": "d", "limits": {"max_duration": {"secs": 30}}}),
    ],
)
def test_a_cancellation_and_a_submission_refuse_unknown_fields_of_messages(
    rest: httpx.Client, stub: Stub, path: str, body: dict[str, Any]
) -> None:
    answer = rest.post(path, json=body)
    assert answer.status_code == 400 and not stub.seen, answer.text
    assert answer.json()["error"]["details"]["fields"] == {"secs": "is no field of this request"}


def test_a_cancellation_and_a_submission_drop_other_unknown_fields(
    rest: httpx.Client, stub: Stub
) -> None:
    body = {"fliter": {"a": [{"b": 1}]}, "*": 1, "force_after": {"seconds": 30}, "wait": "2s"}
    assert rest.post(CANCEL, json=body).status_code == 202
    request = stub.seen[-1][0]
    assert (request.force_after.seconds, request.wait.seconds) == (30, 2)
    submitted = {"description": "d", "secs": 1, "metadata": {"secs": "1"}, "limits": {}}
    assert rest.post(SUBMIT, json=submitted).status_code == 202
