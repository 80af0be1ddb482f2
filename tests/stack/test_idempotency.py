"""Idempotency keys through the edge: in a header over REST, in metadata over gRPC."""

from typing import Any

from tests.support.stack import Gate, Workspace

HEADER = "idempotency-key"


def submit(workspace: Workspace, key: str, description: str, status: int = 202) -> Any:
    response = workspace.rest.call(
        "POST",
        f"{workspace.path}/tasks",
        json={"description": description},
        headers={HEADER: key},
    )
    assert response.status_code == status, response.text
    return response.json()


def test_a_repeat_has_no_effect(workspace: Workspace, gate: Gate) -> None:
    """A repeat over either protocol changes nothing, both during the task and after its end."""
    key = f"key of {workspace.id}"
    first = submit(workspace, key, gate.command)
    workspace.await_phase(first["task_id"], "tool_call")

    def by_grpc(description: str) -> Any:
        return workspace.stack.grpc().call(
            "SubmitTask",
            headers=((HEADER, key),),
            workspace_id=workspace.id,
            description=description,
        )

    assert submit(workspace, key, gate.command) == first
    assert by_grpc(gate.command) == first
    conflict = submit(workspace, key, "true", 409)["error"]
    assert (conflict["code"], conflict["details"]) == (
        "idempotency_conflict",
        {"idempotency_key": key},
    )
    gate.open()
    workspace.await_end(first["task_id"])
    assert submit(workspace, key, gate.command) == first
    assert by_grpc(gate.command) == first
    log = [entry["type"] for entry in workspace.log()]
    assert log.count("task_submitted") == 1
