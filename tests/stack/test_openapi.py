"""A real stack's responses match the OpenAPI document. The check rejects other responses."""

from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import ValidationError

from tests.support.openapi import Operation, operations
from tests.support.stack import Gate, Stack, Workspace

# The reads that `answers` calls one by one: they need a query, another organization or a running
# task, or answer with a stream.
SPECIAL_READS = (
    "GetCurrentIteration",
    "GetHold",
    "ListTasks",
    "ListWebhooks",
    "StreamEvents",
    "StreamOrganization",
)


def answers(stack: Stack, workspace: Workspace, gate: Gate) -> Iterator[tuple[str, Any]]:
    """Calls every operation. Yields the id of each operation with its response."""
    rest, path = workspace.rest, workspace.path
    yield "CreateWorkspace", rest.post("/v1/workspaces", example("CreateWorkspace"), status=201)
    submitted = rest.post(f"{path}/tasks", example("SubmitTask") | {"description": gate.command})
    yield "SubmitTask", submitted
    task_id = submitted["task_id"]
    workspace.await_phase(task_id, "tool_call")
    yield "GetCurrentIteration", rest.get(f"{path}/tasks/{task_id}/iteration")
    yield "CancelTask", workspace.cancel(**example("CancelTask"))
    yield (
        "CancelTaskByTaskId",
        rest.post(f"{path}/tasks/{task_id}/cancel", example("CancelTaskByTaskId")),
    )
    wanted = {"filter": {"workspace_ids": [workspace.id]}, "dry_run": True}
    yield "CancelTasks", rest.post("/v1/tasks/cancel", example("CancelTasks") | wanted)
    gate.open()
    workspace.await_end(task_id)
    yield "CancelTask", workspace.cancel(200, task_id=task_id, wait="1s")
    yield "ListTasks", rest.get("/v1/tasks", params={"root_task_id": task_id})
    yield "StreamEvents", next(rest.events(workspace.id))
    yield "StreamOrganization", next(rest.events(None))
    for read in operations():
        if read.method == "GET" and (name := read.described["operationId"]) not in SPECIAL_READS:
            place = read.path.format(workspace_id=workspace.id, task_id=task_id)
            yield name, rest.get(place)
    # Puts another organization on hold, so that the other calls of this test still work.
    other = stack.rest("other_org")
    yield "HoldOrg", other.post("/v1/hold", example("HoldOrg"), status=200)
    yield "GetHold", other.get("/v1/hold")
    yield "ReleaseOrg", other.post("/v1/hold/release", status=200)
    wanted = example("ResumeWorkspaces") | {"dry_run": True}
    yield "ResumeWorkspaces", other.post("/v1/workspaces/resume", wanted)
    # No event of this type occurs, so nothing is sent to the URL of the example.
    webhook = example("CreateWebhook") | {"event_types": ["workspace_provisioned"]}
    created = other.post("/v1/webhooks", webhook, 201)
    yield "CreateWebhook", created
    yield "ListWebhooks", other.get("/v1/webhooks")
    webhook_path = f"/v1/webhooks/{created['webhook']['id']}"
    yield "RotateWebhookSecret", other.post(f"{webhook_path}/secret/rotate", status=200)
    yield "ReplayWebhook", other.post(f"{webhook_path}/replay", example("ReplayWebhook"), 200)
    yield "DeleteWebhook", other.call("DELETE", webhook_path).json()
    yield "StopWorkspace", rest.post(f"{path}/stop")
    workspace.await_status("stopped")
    yield "ResumeWorkspace", rest.post(f"{path}/resume")
    workspace.await_event("workspace_resumed")
    yield "DeleteWorkspace", rest.call("DELETE", path).json()


def example(name: str) -> dict[str, Any]:
    """Returns the example of a request body from the document."""
    body: dict[str, Any] = named(name).described["requestBody"]["content"]["application/json"][
        "example"
    ]
    return dict(body)


def named(name: str) -> Operation:
    (found,) = [each for each in operations() if each.described["operationId"] == name]
    return found


def test_every_response_matches_its_description(
    stack: Stack, workspace: Workspace, gate: Gate
) -> None:
    called = set()
    for name, answer in answers(stack, workspace, gate):
        called.add(name)
        # The check must also reject a response with an unknown field, and one without a field.
        successes = named(name).described["responses"].items()
        status, response = next(
            (int(status), response) for status, response in successes if status < "400"
        )
        (kind,) = response["content"]
        named(name).check(status, kind, answer)
        for wrong in (answer | {"surprise": 1}, dict(list(answer.items())[1:])):
            with pytest.raises(ValidationError):
                named(name).check(status, kind, wrong)
    assert called == {each.described["operationId"] for each in operations()}
