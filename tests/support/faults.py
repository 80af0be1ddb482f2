"""Helpers for tests of faults: calls that may fail, and checks that every task must pass."""

from typing import Any

import grpc
import httpx
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support.promises import read_history, violations
from tests.support.stack import Stack, Workspace
from tests.support.waiting import LIMIT_SECONDS, eventually
from tests.support.wires import read_failure


def cancel(workspace: Workspace, wire: str, **fields: Any) -> str:
    """Cancels over `wire` (`rest` or `grpc`). Returns the outcome, or the slug of the failure."""
    if wire == "rest":
        response = workspace.rest.call("POST", f"{workspace.path}/task/cancel", json=fields or None)
        body = response.json()
        return str(body["outcome"] if response.is_success else body["error"]["code"])
    try:
        return str(
            workspace.stack.grpc().call("CancelTask", workspace_id=workspace.id, **fields)[
                "outcome"
            ]
        )
    except grpc.RpcError as error:
        return read_failure(error).slug


def intent_of(workspace: Workspace, task_id: str) -> str:
    """Checks whether both the task's row and the log record the intent.

    Returns `whole` if both do, `absent` if neither does, and otherwise a description of the
    difference.
    """
    with workspace.stack.database() as connection:
        row = connection.execute(
            "SELECT cancel_requested_at IS NOT NULL FROM tasks WHERE id = %s", (task_id,)
        ).fetchone()
    assert row is not None
    types = [entry["type"] for entry in workspace.log() if entry["task_id"] == task_id]
    count = types.count("task_cancel_requested")
    return {(True, 1): "whole", (False, 0): "absent"}.get(
        (row[0], count), f"recorded: {row[0]}, events: {count}"
    )


def await_terminal(
    workspace: Workspace, task_id: str, timeout_seconds: float = 15.0
) -> dict[str, Any]:
    """Waits for the task's `task_completed` event. Reads the database, so no worker is needed."""

    def ends() -> list[dict[str, Any]]:
        return [
            entry
            for entry in workspace.log()
            if (entry["type"], entry["task_id"]) == ("task_completed", task_id)
        ]

    return eventually(ends, timeout_seconds)[0]


def await_workspace(workspace: Workspace, status: str, timeout_seconds: float = 15.0) -> None:
    """Waits until the workspace has this status. Reads the database, so no worker is needed."""
    with workspace.stack.database() as connection:
        query = "SELECT status = %s FROM workspaces WHERE id = %s"
        eventually(
            lambda: connection.execute(query, (status, workspace.id)).fetchone() == (True,),
            timeout_seconds,
        )


def assert_story(
    workspace: Workspace, task_id: str, *, status: str, intent: bool
) -> list[dict[str, Any]]:
    """Checks every promise for the workspace, and how this task ended.

    Returns the task's events.
    """
    with workspace.stack.database() as connection:
        history = read_history(connection, workspace.id)
    assert violations(history) == []
    task = history.tasks[task_id]
    assert (task.status, task.cancel_requested_at is not None) == (status, intent)
    return [entry for entry in workspace.log() if entry["task_id"] == task_id]


def submit(workspace: Workspace, *lines: str, after_outage: bool = False) -> str:
    """Submits a task with these commands. Returns the task id.

    If `after_outage` is set, repeats the call until a worker answers again.
    """
    body = {"description": "\n".join(lines)}
    return str(_post(workspace, "tasks", body, after_outage)["task_id"])


def await_phase(workspace: Workspace, task_id: str, phase: str) -> None:
    """Waits until the task is in this phase. Reads the database, so no worker is needed."""
    with workspace.stack.database() as connection:
        query = "SELECT phase = %s FROM tasks WHERE id = %s"
        eventually(lambda: connection.execute(query, (phase, task_id)).fetchone() == (True,))


def assert_next_task_works(workspace: Workspace, *, after_outage: bool = False) -> None:
    """Checks that the workspace accepts a task and completes it."""
    task_id = submit(workspace, "true", after_outage=after_outage)
    await_terminal(workspace, task_id)
    assert_story(workspace, task_id, status="completed", intent=False)


def resume(workspace: Workspace, *, after_outage: bool = False) -> None:
    """Waits until the workspace has failed, then resumes it.

    This can take long: a controller may first have to restart and to become the leader.
    """
    await_workspace(workspace, "failed", 60)
    _post(workspace, "resume", None, after_outage)
    await_workspace(workspace, "idle", 60)


def _post(workspace: Workspace, path: str, body: Any, after_outage: bool) -> dict[str, Any]:
    """Makes a call that must succeed.

    If `after_outage` is set, repeats the call while Envoy or the workers do not answer it.
    """

    def answered() -> dict[str, Any]:
        try:
            response = workspace.rest.call("POST", f"{workspace.path}/{path}", json=body)
        except httpx.TransportError:
            if after_outage:
                return {}
            raise
        if after_outage and response.status_code == 503:
            return {}
        assert response.status_code == 202, response.text
        answer: dict[str, Any] = response.json()
        return answer

    return eventually(answered, 60)


def health_of(address: str) -> str:
    """Returns the health status of a worker; empty if it does not answer."""
    with grpc.insecure_channel(address) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=2, wait_for_ready=True
            )
        except grpc.RpcError:
            return ""
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def await_workers(stack: Stack, limit_seconds: float = LIMIT_SECONDS) -> None:
    """Waits until every worker serves.

    Until then, Envoy may send a call to a worker that is not ready and refuses the call.
    """
    for address in stack.worker_addresses():
        eventually(lambda: health_of(address) == "SERVING", limit_seconds)
