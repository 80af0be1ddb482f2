"""Every error of a cancellation on a real stack: the same over gRPC and REST, with its details."""

import json
from typing import Any

import grpc
import pytest
from evershell.workspace.v1 import error_pb2

from tests.support.stack import Gate, Stack, Workspace
from tests.support.waiting import eventually
from tests.support.wires import Failed

RULES = {
    value.name: value.GetOptions().Extensions[error_pb2.rule]
    for value in error_pb2.Error.ErrorCode.DESCRIPTOR.values
}
GRPC_CODES = {code.value[0]: code for code in grpc.StatusCode}


def cancel_fails(
    stack: Stack, slug: str, workspace_id: str, token: str = "full_access", **fields: Any
) -> tuple[Failed, Failed]:
    """Makes the same call over REST and gRPC, and checks that both fail and are logged alike."""
    both = both_fail(stack, slug, workspace_id, token, **fields)
    for failed in both:
        assert_logged(stack, failed)
    return both


def both_fail(
    stack: Stack, slug: str, workspace_id: str, token: str = "full_access", **fields: Any
) -> tuple[Failed, Failed]:
    rest = stack.rest(token).fails(
        "POST", f"/v1/workspaces/{workspace_id}/task/cancel", json=fields
    )
    rpc = stack.grpc(token).fails("CancelTask", workspace_id=workspace_id, **fields)
    assert (rest.slug, rpc.slug) == (slug, slug)
    assert rest.message == rpc.message
    assert rest.status == RULES[slug].http
    assert rpc.status == GRPC_CODES[RULES[slug].grpc]
    return rest, rpc


def assert_logged(stack: Stack, failed: Failed) -> None:
    """Checks that a worker logs the call with this request id. It logs right after the response."""
    logs = list((stack.state_dir / "logs").glob("worker-*.log"))

    def is_logged() -> bool:
        lines = [
            line
            for log in logs
            for line in log.read_text().splitlines()
            if failed.request_id in line
        ]
        return any(f'"outcome": "{failed.slug}"' in line for line in lines)

    eventually(is_logged)


@pytest.mark.parametrize(
    "token", ["", "expired", "sk_unknown", "eyJhbGciOiJub25lIn0.eyJzdWIiOiJ1In0.", "no such kind"]
)
def test_a_caller_without_a_valid_credential_is_unauthenticated(stack: Stack, token: str) -> None:
    cancel_fails(stack, "unauthenticated", stack.ready["demo"]["workspace_id"], token)
    response = stack.rest(token).call(
        "POST", f"/v1/workspaces/{stack.ready['demo']['workspace_id']}/task/cancel"
    )
    assert response.headers["www-authenticate"] == "Bearer"


def test_a_caller_without_the_scope_is_denied(stack: Stack) -> None:
    rest, rpc = cancel_fails(
        stack, "permission_denied", stack.ready["demo"]["workspace_id"], "read_only"
    )
    assert rest.details["required"] == ["workspace:write", "workspace:write:own"]
    assert rpc.details["ErrorInfo"]["metadata"]["required"] == "workspace:write,workspace:write:own"


def test_an_own_scope_does_not_cover_the_workspace_of_another_user(stack: Stack) -> None:
    rest, _ = cancel_fails(
        stack, "permission_denied", stack.ready["demo"]["workspace_id"], "member"
    )
    assert rest.details["required"] == ["workspace:write"]


def test_an_own_scope_covers_the_users_own_workspace(stack: Stack) -> None:
    own = Workspace(stack, "member")
    assert own.get()["created_by_user_id"] == "user_member"
    assert own.cancel()["outcome"] == "no_active_task"


def test_a_workspace_of_another_organization_looks_like_an_unknown_one(
    stack: Stack,
) -> None:
    existing, absent = stack.ready["demo"]["workspace_id"], "ws_01ARZ3NDEKTSV4RRFFQ69G5FAV"
    foreign = cancel_fails(stack, "workspace_not_found", existing, "other_org")
    unknown = cancel_fails(stack, "workspace_not_found", absent, "other_org")
    for one, other in zip(foreign, unknown, strict=True):
        assert one.message.replace(existing, absent) == other.message
        # A map of a message has no order.
        shown, expected = (json.dumps(each.details, sort_keys=True) for each in (one, other))
        assert shown.replace(existing, absent).replace(one.request_id, other.request_id) == expected
    assert foreign[0].details == {"resource_type": "workspace", "resource_name": existing}
    assert foreign[1].details["ResourceInfo"]["resource_name"] == existing


def test_a_task_of_another_workspace_is_not_found(stack: Stack, workspace: Workspace) -> None:
    task_id = workspace.submit("true")
    workspace.await_end(task_id)
    rest, rpc = cancel_fails(
        stack, "task_not_found", stack.ready["demo"]["workspace_id"], task_id=task_id
    )
    assert (rest.details["resource_type"], rest.details["resource_name"]) == ("task", task_id)
    assert rpc.details["ResourceInfo"]["resource_type"] == "task"


def test_one_error_names_all_invalid_fields(stack: Stack) -> None:
    rest, rpc = cancel_fails(stack, "validation_error", "ws_1", task_id="no good", reason="x" * 501)
    assert rest.details["fields"] == {
        "task_id": "must be 1 to 128 characters of A-Z a-z 0-9 _ -",
        "reason": "has 501 characters; at most 500 are allowed",
    }
    violations = rpc.details["BadRequest"]["field_violations"]
    assert {
        violation["field"]: violation["description"] for violation in violations
    } == rest.details["fields"]


def assert_precondition(rest: Failed, rpc: Failed, workspace_id: str) -> None:
    assert rest.details["workspace_id"] == workspace_id
    (violation,) = rpc.details["PreconditionFailure"]["violations"]
    assert violation == {
        "type": rest.slug.upper(),
        "subject": workspace_id,
        "description": rest.message,
    }


def test_a_provisioning_workspace_refuses_a_cancellation(stack: Stack) -> None:
    with stack.frozen("fleet"):
        created = stack.rest().post("/v1/workspaces", {}, status=201)
        assert created["status"] == "provisioning"
        both = both_fail(stack, "workspace_provisioning", created["id"])
    # The supervisor, which is frozen too, writes the logs.
    for failed in both:
        assert_logged(stack, failed)
    assert_precondition(*both, created["id"])


def test_a_stopped_workspace_refuses_a_cancellation(stack: Stack, workspace: Workspace) -> None:
    pid = stack.agent_pid(workspace.id)
    assert workspace.rest.post(f"{workspace.path}/stop")["status"] == "stopping"
    workspace.await_status("stopped")
    assert not stack.is_alive(pid)
    assert_precondition(*cancel_fails(stack, "workspace_stopped", workspace.id), workspace.id)

    assert workspace.rest.post(f"{workspace.path}/resume")["status"] == "provisioning"

    workspace.await_event("workspace_resumed")
    assert workspace.await_end(workspace.submit("true"))["status"] == "completed"


def test_a_workspace_whose_agent_has_died_refuses_a_cancellation(
    stack: Stack, workspace: Workspace, gate: Gate
) -> None:
    task_id = workspace.submit(gate.command)
    workspace.await_phase(task_id, "tool_call")
    stack.kill(stack.agent_pid(workspace.id))
    end = workspace.await_end(task_id)
    assert (end["status"], end["forced"]) == ("failed", False)
    assert "ended unexpectedly" in end["reason"]
    workspace.await_status("failed")
    assert stack.pod_processes(workspace.id) == []
    assert_precondition(*cancel_fails(stack, "workspace_failed", workspace.id), workspace.id)

    workspace.rest.post(f"{workspace.path}/resume")

    workspace.await_event("workspace_resumed")
    assert workspace.await_end(workspace.submit("true"))["status"] == "completed"


def test_a_busy_workspace_refuses_a_second_task(
    stack: Stack, workspace: Workspace, gate: Gate
) -> None:
    task_id = workspace.submit(gate.command)
    rest = workspace.rest.fails("POST", f"{workspace.path}/tasks", json={"description": "true"})
    rpc = stack.grpc().fails("SubmitTask", workspace_id=workspace.id, description="true")
    assert (rest.slug, rest.status, rpc.slug) == ("workspace_busy", 409, "workspace_busy")
    assert rest.details["task_id"] == task_id
    gate.open()
    workspace.await_end(task_id)


def test_a_task_for_an_agent_that_does_not_answer_ends_as_delivery_failed(
    stack: Stack, workspace: Workspace
) -> None:
    pid = stack.agent_pid(workspace.id)
    with stack.frozen_process(pid):
        failed = workspace.rest.fails(
            "POST", f"{workspace.path}/tasks", json={"description": "touch ran"}
        )
        assert (failed.slug, failed.details["intent_recorded"]) == ("agent_unreachable", False)
        task_id = failed.details["task_id"]
        assert workspace.await_end(task_id)["status"] == "delivery_failed"
    # The agent reads the call after the freeze, and does not run a task that has ended.
    assert workspace.await_end(workspace.submit("ls"))["status"] == "completed"
    assert not (stack.files(workspace.id) / "ran").exists()
    assert workspace.task(task_id)["status"] == "delivery_failed"
    assert stack.agent_pid(workspace.id) == pid


def test_a_workspace_that_is_stopping_cannot_be_resumed(workspace: Workspace, gate: Gate) -> None:
    task_id = workspace.submit(gate.command, "echo never")
    workspace.await_phase(task_id, "tool_call")
    workspace.rest.post(f"{workspace.path}/stop")
    failed = workspace.rest.fails("POST", f"{workspace.path}/resume")
    assert (failed.slug, failed.status) == ("invalid_state", 409)
    gate.open()
    end = workspace.await_end(task_id)
    assert (end["status"], end["forced"], end["iterations"], end["cancel"]["reason"]) == (
        "cancelled",
        False,
        1,
        "workspace stopped",
    )
    workspace.await_status("stopped")
    # A late retry of the cancellation gets the task's end in any state of the workspace.
    answer = workspace.cancel(task_id=task_id)
    assert (answer["outcome"], answer["task"]["status"]) == ("already_finished", "cancelled")
