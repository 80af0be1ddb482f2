"""The audit log on a real stack, over REST and gRPC."""

from ipaddress import ip_address
from typing import Any

from tests.support.stack import Stack, Workspace
from tests.support.waiting import eventually


def entries(
    stack: Stack, path: str = "/v1/audit", token: str = "full_access", **filters: str
) -> Any:
    return stack.rest(token).get(path, params=filters)["entries"]


def test_each_call_on_a_workspace_is_on_record(stack: Stack, workspace: Workspace) -> None:
    """The log has each call exactly once, whether it was allowed or refused, over REST or gRPC."""
    task_id = workspace.submit("true")
    workspace.await_end(task_id)
    workspace.cancel(reason="by REST")
    stack.grpc().call("CancelTask", workspace_id=workspace.id, reason="by gRPC")
    stack.rest("member").fails("POST", f"{workspace.path}/task/cancel")
    stack.rest("read_only").fails("POST", f"{workspace.path}/stop")
    stack.rest().fails("POST", f"{workspace.path}/tasks", json={})
    path = f"{workspace.path}/audit"
    # The entry of a refused call is stored up to a second after the call.
    eventually(lambda: len(entries(stack, path)) == 7)
    found = entries(stack, path)
    assert [(each["rpc"], each["outcome"], each["actor_id"]) for each in found[::-1]] == [
        ("CreateWorkspace", "ok", found[-1]["actor_id"]),
        ("SubmitTask", "ok", found[-1]["actor_id"]),
        ("CancelTask", "no_active_task", found[-1]["actor_id"]),
        ("CancelTask", "no_active_task", found[-1]["actor_id"]),
        ("CancelTask", "permission_denied", "user_member"),
        ("StopWorkspace", "permission_denied", found[1]["actor_id"]),
        ("SubmitTask", "validation_error", found[-1]["actor_id"]),
    ]
    # If the client runs on the machine of the edge, the edge forwards an address of the machine.
    assert all(ip_address(each["client_address"]) for each in found)
    assert {each["org_id"] for each in found} == {"org_demo"}
    assert (found[-2]["task_id"], found[-1]["credential_kind"]) == (task_id, "api_key")
    assert found[2]["credential_kind"] == "session"
    filtered = entries(stack, path, rpc="CancelTask", outcome="no_active_task")
    assert [each["reason"] for each in filtered] == ["by gRPC", "by REST"]
    after = entries(stack, path, start_time=found[0]["time"])
    assert [each["id"] for each in after] == [found[0]["id"]]
