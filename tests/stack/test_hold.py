"""A hold on an organization, through the edge, over REST and gRPC."""

from collections.abc import Iterator

import pytest

from tests.support.stack import Gate, Stack, Workspace

CALLER = "other_org"


@pytest.fixture
def other(stack: Stack) -> Iterator[Workspace]:
    """A workspace of a second organization. After the test, the organization is not on hold."""
    workspace = Workspace(stack, CALLER)
    yield workspace
    workspace.rest.post("/v1/hold/release", status=200)
    workspace.rest.post(f"{workspace.path}/stop")


def test_a_hold_refuses_what_is_new_and_nothing_else(stack: Stack, other: Workspace) -> None:
    gate = Gate(other)
    task_id = other.submit(gate.command)
    other.await_phase(task_id, "tool_call")
    held = other.rest.post("/v1/hold", {"reason": "gone wrong"}, 200)["hold"]
    assert held["on_hold"] and held["reason"] == "gone wrong"
    assert other.rest.get("/v1/hold") == held
    assert stack.grpc(CALLER).call("GetHold") == held
    refused = other.rest.call("POST", f"{other.path}/tasks", json={"description": "true"})
    assert (refused.status_code, refused.headers["x-should-retry"]) == (409, "false")
    error = refused.json()["error"]
    assert error["code"] == "org_on_hold"
    assert (error["details"]["held_by"], error["details"]["hold_reason"]) == (
        held["held_by"],
        "gone wrong",
    )
    for path in ("/v1/workspaces", f"{other.path}/resume"):
        assert other.rest.fails("POST", path).slug == "org_on_hold"
    by_grpc = stack.grpc(CALLER).fails("SubmitTask", workspace_id=other.id, description="true")
    (violation,) = by_grpc.details["PreconditionFailure"]["violations"]
    assert (by_grpc.slug, violation["subject"]) == ("org_on_hold", held["org_id"])
    assert other.cancel()["outcome"] == "accepted"
    gate.open()
    assert other.await_end(task_id)["status"] == "cancelled"
    assert other.rest.post("/v1/hold/release", status=200)["on_hold"] is False
    other.await_end(other.submit("true"))
