"""Idempotency keys through the edge: over REST by header, over gRPC by metadata."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.support.stack import Gate, Stack, Workspace

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


def create(stack: Stack, key: str) -> httpx.Response:
    return stack.rest().call(
        "POST", "/v1/workspaces", json={"name": "keyed"}, headers={HEADER: key}
    )


def test_a_repeat_has_no_effect(workspace: Workspace, gate: Gate) -> None:
    """Over either protocol, while the task runs and when it has ended."""
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


def test_of_calls_at_the_same_time_one_has_an_effect(workspace: Workspace) -> None:
    """On all workers, each of which has its own connections."""
    key = f"race of {workspace.id}"
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: submit(workspace, key, "true"), range(12)))
    assert answers == answers[:1] * 12
    workspace.await_end(answers[0]["task_id"])
    log = [entry["type"] for entry in workspace.log()]
    assert log.count("task_submitted") == 1


def test_a_repeated_creation_makes_one_workspace(stack: Stack, workspace: Workspace) -> None:
    key = f"creation after {workspace.id}"
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: create(stack, key), range(6)))
    bodies = [answer.json() for answer in answers]
    assert [answer.status_code for answer in answers] == [201] * 6
    assert bodies == bodies[:1] * 6
    made = bodies[0]["id"]
    with stack.database() as connection:
        query = "SELECT count(*) FROM workspaces WHERE created_at >= %s AND name = 'keyed'"
        assert connection.execute(query, (bodies[0]["created_at"],)).fetchone() == (1,)
    stack.rest().post(f"/v1/workspaces/{made}/stop")


@pytest.mark.parametrize("key", ["", "k" * 256, "sch\xfcssel"])
def test_a_key_that_is_not_valid_is_refused(workspace: Workspace, key: str) -> None:
    refused = workspace.rest.call(
        "POST",
        f"{workspace.path}/tasks",
        json={"description": "true"},
        headers={HEADER: key.encode("latin-1")},
    )
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "validation_error"
    assert workspace.get()["status"] == "idle"


def test_answers_that_are_final_say_so(workspace: Workspace, gate: Gate) -> None:
    """SDKs of common generators would repeat the call."""
    task_id = workspace.submit(gate.command)
    busy = workspace.rest.call("POST", f"{workspace.path}/tasks", json={"description": "true"})
    assert (busy.status_code, busy.headers["x-should-retry"]) == (409, "false")
    missing = workspace.rest.call("GET", "/v1/workspaces/ws_unknown")
    assert (missing.status_code, missing.headers.get("x-should-retry")) == (404, None)
    workspace.await_phase(task_id, "tool_call")
    agent = workspace.stack.agent_pid(workspace.id)
    with workspace.stack.frozen_process(agent):
        unreachable = workspace.rest.call("POST", f"{workspace.path}/task/cancel")
        assert (unreachable.status_code, unreachable.headers["x-should-retry"]) == (503, "false")
    gate.open()
    workspace.await_end(task_id)
