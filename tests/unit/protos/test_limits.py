"""The limits of fields are the same in the OpenAPI document and in the service."""

from collections.abc import Callable
from typing import Any

import pytest
from evershell.workspace.v1 import workspace_service_pb2
from google.protobuf import json_format
from jsonschema import ValidationError

from evershell.api import codec
from evershell.core.errors import Failure
from evershell.core.event import Origin
from evershell.core.validation import Fields
from evershell.core.workspaces import MAX_NAME_CHARACTERS
from tests.support.openapi import validate

LIMITS = [
    ("CancelTaskRequest", {"reason": "x" * 500}, {"reason": "x" * 501}),
    ("CancelTaskRequest", {"wait": "30.000s"}, {"wait": "30.001s"}),
    ("CancelTaskRequest", {"wait": "0s"}, {"wait": "-1s"}),
    ("CancelTaskRequest", {"force_after": "86399.999s"}, {"force_after": "86400.1s"}),
    ("CancelTaskRequest", {"force_after": "86400s"}, {"force_after": "86401s"}),
    ("CancelTaskRequest", {"task_id": "task_1"}, {"task_id": "task/1"}),
    ("SubmitTaskRequest", {"description": "x" * 100_000}, {"description": "x" * 100_001}),
    ("SubmitTaskRequest", {"description": "x"}, {"description": ""}),
    ("SubmitTaskRequest", {"description": "x"}, {}),
    ("SubmitTaskRequest", {"max_iterations": 1}, {"max_iterations": -1}),
    ("SubmitTaskRequest", {"max_iterations": 1_000}, {"max_iterations": 1_001}),
    (
        "SubmitTaskRequest",
        {"metadata": {str(n): "v" * 512 for n in range(32)}},
        {"metadata": {str(n): "v" for n in range(33)}},
    ),
    ("SubmitTaskRequest", {"metadata": {"k" * 64: ""}}, {"metadata": {"k" * 65: ""}}),
    ("SubmitTaskRequest", {"metadata": {"k": ""}}, {"metadata": {"": ""}}),
    ("SubmitTaskRequest", {"metadata": {"k": "v"}}, {"metadata": {"k": "v" * 513}}),
    ("CreateWorkspaceRequest", {"name": "x" * 200}, {"name": "x" * 201}),
    *(
        ("CancelTasksRequest", {"filter": allowed}, {"filter": refused})
        for allowed, refused in (
            ({"task_ids": ["t"] * 1_000}, {"task_ids": ["t"] * 1_001}),
            ({"task_ids": ["t"]}, {"task_ids": []}),
            ({"task_ids": ["t"]}, {"task_ids": [""]}),
            ({"submitted_by": "u"}, {"submitted_by": ""}),
            ({"metadata": {"k": "v"}}, {"metadata": {}}),
        )
    ),
]


DEFAULTS: dict[str, dict[str, Any]] = {
    "CancelTaskRequest": {},
    "SubmitTaskRequest": {"description": "x"},
    "CreateWorkspaceRequest": {},
    "CancelTasksRequest": {},
}
ORIGIN = Origin(request_id="r")


def _check_name(name: str) -> None:
    fields = Fields()
    fields.text("name", name, max_characters=MAX_NAME_CHARACTERS)
    fields.check()


def _parsed(message: Any, body: dict[str, Any]) -> Any:
    return json_format.ParseDict({"workspace_id": "ws_1"} | body, message)


REQUESTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "CancelTaskRequest": lambda body: codec.decode_cancel(
        _parsed(workspace_service_pb2.CancelTaskRequest(), body), ORIGIN
    ),
    "SubmitTaskRequest": lambda body: codec.decode_submit(
        _parsed(workspace_service_pb2.SubmitTaskRequest(), body), ORIGIN
    ),
    "CancelTasksRequest": lambda body: codec.decode_cancel_tasks(
        json_format.ParseDict(body, workspace_service_pb2.CancelTasksRequest()), ORIGIN
    ),
    "CreateWorkspaceRequest": lambda body: _check_name(body["name"]),
}


@pytest.mark.parametrize(("name", "allowed", "refused"), LIMITS)
def test_the_document_has_the_limits_of_the_service(
    name: str, allowed: dict[str, Any], refused: dict[str, Any]
) -> None:
    """The document and the service take their limits from the same options, and must agree."""
    schema = {"$ref": f"#/components/schemas/{name}"}
    for body, is_allowed in ((allowed, True), (refused, False)):
        whole = DEFAULTS[name] | body if body else body
        found = {"schema": True, "service": True}
        try:
            validate(whole, schema)
        except ValidationError:
            found["schema"] = False
        try:
            REQUESTS[name](whole)
        except Failure:
            found["service"] = False
        assert found == dict.fromkeys(found, is_allowed), whole
