"""What the JSON body of a REST call may hold."""

import json
from typing import Any

import pytest
from evershell.workspace.v1 import workspace_service_pb2
from evershell.workspace.v1.workspace_service_pb2 import (
    CancelTaskRequest,
    CancelTasksRequest,
    HoldOrgRequest,
    RestBody,
    SubmitTaskRequest,
)
from google.api.httpbody_pb2 import HttpBody
from google.protobuf.json_format import MessageToJson, Parse
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from evershell.api.method_options import WORKSPACE_SERVICE, public_methods
from evershell.api.rest_body import merge_rest_body
from evershell.core.errors import Failure


def merged(request: Message, body: bytes) -> Any:
    """The request after the edge has added the body, and the service has read it."""
    sent = RestBody(http_body=HttpBody(data=body)).SerializeToString()
    merge_rest_body(sent, request)
    return request


def problems(kind: type[Message], body: bytes | str) -> dict[str, str]:
    """The fields that the refusal names, each with its problem."""
    with pytest.raises(Failure) as raised:
        merged(kind(), body.encode() if isinstance(body, str) else body)
    assert raised.value.slug == "validation_error"
    fields: dict[str, str] = raised.value.details["fields"]
    assert fields
    return fields


WHOLE = {
    "filter": {
        "workspace_ids": ["ws_1", "ws_2"],
        "createdByUserId": "user_1",
        "submitted_by": "key_1",
        "submittedBefore": "2026-01-02T03:04:05Z",
        "metadata": {"team": "a", "größe": 'in "quotes"'},
    },
    "reason": "r",
    "forceAfter": "2.5s",
    "dry_run": True,
}


def test_every_form_of_a_valid_body_is_read() -> None:
    for indent in (None, 2):
        body = json.dumps(WHOLE, indent=indent)
        assert merged(CancelTasksRequest(), body.encode()) == Parse(body, CancelTasksRequest())
    for empty in (b"", b"{}", b" { } "):
        of_path = CancelTaskRequest(workspace_id="ws_1")
        assert merged(of_path, empty) == CancelTaskRequest(workspace_id="ws_1")
    numbers = merged(SubmitTaskRequest(), b'{"max_iterations": "5", "limits": {}}')
    assert numbers.max_iterations == 5 and numbers.HasField("limits")


def test_the_path_stands_beside_the_body() -> None:
    request = merged(CancelTaskRequest(workspace_id="ws_1"), b'{"workspaceId": "ws_1"}')
    assert request == CancelTaskRequest(workspace_id="ws_1")
    for name in ("workspace_id", "workspaceId"):
        with pytest.raises(Failure) as raised:
            merged(CancelTaskRequest(workspace_id="ws_1"), json.dumps({name: "ws_2"}).encode())
        assert raised.value.details["fields"] == {name: "differs from the value in the path"}


# tests/wire/api/test_field_table.py tests what every field refuses.
@pytest.mark.parametrize(
    ("kind", "body", "field"),
    [
        (CancelTaskRequest, '{"": 1}', ""),
        (CancelTaskRequest, '{"http_body": {}}', "http_body"),
        (
            CancelTasksRequest,
            '{"filter": {"metadata": {"a": "1", "a": "2"}}}',
            "filter.metadata.a",
        ),
        (
            CancelTasksRequest,
            '{"filter": {"workspace_ids": ["ws_1", null]}}',
            "filter.workspace_ids[1]",
        ),
        # If an empty field next to another field were ignored, the filter would select more tasks.
        (
            CancelTasksRequest,
            '{"filter": {"submitted_by": "u", "task_ids": []}}',
            "filter.task_ids",
        ),
        (
            CancelTasksRequest,
            '{"filter": {"submitted_by": "u", "metadata": {}}}',
            "filter.metadata",
        ),
        (CancelTasksRequest, '{"filter": {"submitted_before": 5}}', "filter.submitted_before"),
        (SubmitTaskRequest, '{"metadata": {"a": null}}', "metadata.a"),
        (SubmitTaskRequest, '{"max_iterations": 1e999}', "max_iterations"),
        (SubmitTaskRequest, '{"max_iterations": 1.5}', "max_iterations"),
        (SubmitTaskRequest, '{"max_iterations": true}', "max_iterations"),
        (CancelTaskRequest, '{"reason": 5}', "reason"),
        (CancelTaskRequest, '{"reason": NaN}', "reason"),
        (CancelTaskRequest, '{"reason": "\\ud800"}', "reason"),
        (SubmitTaskRequest, '{"metadata": {"a": "\\ud800"}}', "metadata.a"),
        (CancelTaskRequest, '{"wait": 10}', "wait"),
        (CancelTaskRequest, '{"wait": "10"}', "wait"),
        (CancelTaskRequest, '{"force_after": "\\"}}"}', "force_after"),
        (HoldOrgRequest, '{"cancel_running": "true"}', "cancel_running"),
        # Reading so many values would delay other calls.
        (CancelTaskRequest, '{"reason": [' + "{}," * 100 + "{}]}", "body"),
        (CancelTaskRequest, "[" * 100_000, "body"),
        (CancelTaskRequest, '{"wait": ' + "9" * 10_000 + "}", "body"),
        (CancelTaskRequest, "[]", "body"),
        (CancelTaskRequest, "null", "body"),
        (CancelTaskRequest, '{"reason": ', "body"),
        (CancelTaskRequest, "{} {}", "body"),
        (CancelTaskRequest, "{'reason': 'r'}", "body"),
        (CancelTaskRequest, " ", "body"),
        (CancelTaskRequest, b'{"reason": "\xff"}', "body"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_would_have_to_be_guessed_is_refused(
    kind: type[Message], body: bytes | str, field: str
) -> None:
    assert list(problems(kind, body)) == [field]


def test_an_answer_names_several_fields_within_a_bound() -> None:
    assert set(problems(CancelTaskRequest, '{"a": 1, "wait": 2, "reason": 3}')) == {
        "a",
        "wait",
        "reason",
    }
    many = json.dumps({f"{number:0500}\ud800": 1 for number in range(100)})
    fields = problems(CancelTaskRequest, many)
    assert len(fields) <= 10 and all(len(name) <= 200 for name in fields)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["filter", "workspaceIds", "limits", "metadata", "wait", "reason", "x"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)
REQUESTS = [
    getattr(workspace_service_pb2, f"{path.rpartition('/')[2]}Request")
    for path in sorted(public_methods(with_effect=True, services=[WORKSPACE_SERVICE]))
]


@given(kind=st.sampled_from(REQUESTS), value=ANYTHING)
def test_any_json_is_read_or_refused(kind: type[Message], value: Any) -> None:
    body = json.dumps(value).encode()
    try:
        request = merged(kind(), body)
    except Failure as failure:
        assert failure.slug == "validation_error" and failure.details["fields"]
    else:
        # The request has exactly the fields of the body: nothing was dropped or added.
        assert Parse(body, kind()) == request
        assert len(json.loads(MessageToJson(request))) <= len(value)
