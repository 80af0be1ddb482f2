"""Deletions of a workspace through the edge, after which only a record of the workspace remains."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.receivers import Receiver, receiving
from tests.support.stack import Gate, Stack, Workspace
from tests.support.waiting import eventually
from tests.support.wires import Failed

TABLES = ("tasks", "events", "agent_cards", "webhooks", "webhook_deliveries")
# The time limit for a delivery. A worker notices the first webhook within 5 s, and then starts the
# process that delivers events.
LIMIT_SECONDS = 40.0
# A command that makes a folder with mode 000. Only the owner can change the mode and remove it.
LOCKED = "mkdir -p locked/inner && touch locked/inner/file && chmod -R 000 locked"


class Wire:
    """The calls that a deletion needs, over REST or gRPC."""

    def __init__(self, stack: Stack, kind: str) -> None:
        self._stack = stack
        self._kind = kind

    def delete(self, workspace_id: str, token: str = "full_access") -> dict[str, Any]:
        if self._kind == "grpc":
            return self._stack.grpc(token).call("DeleteWorkspace", workspace_id=workspace_id)
        response = self._stack.rest(token).call("DELETE", f"/v1/workspaces/{workspace_id}")
        assert response.status_code == 202, response.text
        answer: dict[str, Any] = response.json()
        return answer

    def fails(self, method: str, rpc: str, path: str, **fields: Any) -> Failed:
        """Makes a call that must fail. `path` is appended to the path of the workspace."""
        token = fields.pop("token", "full_access")
        if self._kind == "grpc":
            return self._stack.grpc(token).fails(rpc, **fields)
        path = f"/v1/workspaces/{fields.pop('workspace_id')}{path}"
        return self._stack.rest(token).fails(method, path, json=fields or None)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as running:
        yield running


def rows(stack: Stack, workspace_id: str) -> int:
    """Returns the number of the workspace's rows, except for the record of the deletion."""
    counts = " + ".join(
        f"(SELECT count(*) FROM {table} WHERE workspace_id = %(id)s)" for table in TABLES
    )
    query = f"SELECT {counts} + (SELECT count(*) FROM workspaces WHERE id = %(id)s)"
    with stack.database() as connection:
        row = connection.execute(query.encode(), {"id": workspace_id}).fetchone()
    assert row is not None
    return int(row[0])


def await_removal(workspace: Workspace) -> None:
    stack = workspace.stack
    eventually(lambda: workspace.rest.call("GET", workspace.path).status_code == 404, LIMIT_SECONDS)
    assert rows(stack, workspace.id) == 0
    assert list(stack.state_dir.glob(f"*/{workspace.id}*")) == []
    assert stack.pod_processes(workspace.id) == []


@pytest.mark.parametrize("kind", ["rest", "grpc"])
def test_a_busy_workspace_is_deleted_with_everything_it_has(
    stack: Stack, workspace: Workspace, gate: Gate, receiver: Receiver, kind: str
) -> None:
    wire = Wire(stack, kind)
    webhook = {"url": receiver.url, "event_types": ["task_completed"]}
    created = workspace.rest.post("/v1/webhooks", webhook, 201)["webhook"]["id"]
    task_id = workspace.begin(gate.command, LOCKED, "touch never")
    messages: list[dict[str, Any]] = []
    watching = threading.Thread(
        target=lambda: messages.extend(workspace.rest.events(workspace.id)), daemon=True
    )
    watching.start()

    deleting = wire.delete(workspace.id)
    assert (deleting["status"], deleting["status_reason"]) == ("deleting", "workspace deleted")
    assert deleting["current_task_id"] == task_id
    assert wire.delete(workspace.id) == deleting
    for method, rpc, path, fields in (
        ("POST", "CancelTask", "/task/cancel", {}),
        ("POST", "SubmitTask", "/tasks", {"description": "true"}),
        ("POST", "StopWorkspace", "/stop", {}),
        ("POST", "ResumeWorkspace", "/resume", {}),
    ):
        refused = wire.fails(method, rpc, path, workspace_id=workspace.id, **fields)
        assert refused.slug == "workspace_deleting", rpc
    gate.open()
    await_removal(workspace)

    watching.join(30)
    types = [message["event"]["type"] for message in messages if "event" in message]
    assert types[-2:] == ["task_completed", "workspace_stopped"]
    end = next(each for each in messages if each.get("event", {}).get("type") == "task_completed")
    completed = end["event"]["task_completed"]
    assert (completed["status"], completed["reason"]) == ("cancelled", "workspace deleted")
    assert completed["iterations"] == 1
    assert messages[-1]["error"]["code"] == "workspace_not_found"
    # The webhook got the end of the task, because a workspace is removed only after its deliveries.
    assert [each["type"] for each in receiver.events(task_id)] == ["task_completed"]
    workspace.rest.call("DELETE", f"/v1/webhooks/{created}")

    again = wire.delete(workspace.id)
    same = ("id", "org_id", "status", "status_reason", "name", "created_at", "epoch")
    assert {name: again[name] for name in same} == {name: deleting[name] for name in same}
    for method, rpc, path, fields in (
        ("POST", "CancelTask", "/task/cancel", {"task_id": task_id}),
        ("GET", "GetTask", f"/tasks/{task_id}", {"task_id": task_id} if kind == "grpc" else {}),
        ("POST", "ResumeWorkspace", "/resume", {}),
    ):
        refused = wire.fails(method, rpc, path, workspace_id=workspace.id, **fields)
        assert refused.slug == "workspace_not_found", rpc
    entries = workspace.rest.get(f"{workspace.path}/audit")["entries"]
    deletions = [each for each in entries if each["rpc"] == "DeleteWorkspace"]
    assert [each["outcome"] for each in deletions] == ["ok"] * 3


@pytest.mark.parametrize("kind", ["rest", "grpc"])
def test_a_deleted_workspace_looks_to_others_as_if_it_had_never_been(
    stack: Stack, workspace: Workspace, kind: str
) -> None:
    wire = Wire(stack, kind)

    def refused(workspace_id: str, token: str) -> tuple[Any, str, str]:
        failed = wire.fails("DELETE", "DeleteWorkspace", "", workspace_id=workspace_id, token=token)
        return failed.status, failed.slug, failed.message.replace(workspace_id, "")

    unknown = "ws_01ARZ3NDEKTSV4RRFFQ69G5FAV"
    before = refused(workspace.id, "other_org")
    assert before[1] == "workspace_not_found"
    assert refused(workspace.id, "member")[1] == "permission_denied"
    assert refused(workspace.id, "read_only")[1] == "permission_denied"
    wire.delete(workspace.id)
    await_removal(workspace)
    assert refused(workspace.id, "other_org") == before == refused(unknown, "other_org")
    assert refused(workspace.id, "member")[1] == "permission_denied"
    assert refused(unknown, "member")[1] == "workspace_not_found"


def test_a_workspace_is_deleted_in_every_state(stack: Stack) -> None:
    failed, stopped = Workspace(stack), Workspace(stack)
    stack.kill(stack.agent_pid(failed.id))
    failed.await_status("failed")
    stopped.rest.post(f"{stopped.path}/stop")
    stopped.await_status("stopped")
    path = "/v1/workspaces"
    new = stack.rest().post(path, {}, status=201)["id"]
    wire = Wire(stack, "rest")
    for workspace_id in (new, failed.id, stopped.id):
        assert wire.delete(workspace_id)["status"] == "deleting"
    eventually(lambda: stack.rest().call("GET", f"{path}/{new}").status_code == 404, LIMIT_SECONDS)
    assert stack.pod_processes(new) == [] and rows(stack, new) == 0
    assert list(stack.state_dir.glob(f"*/{new}*")) == []
    await_removal(failed)
    await_removal(stopped)


def test_the_key_of_a_creation_outlives_the_workspace(stack: Stack) -> None:
    """A late repeat of the creation does not create a second workspace."""
    rest, headers = stack.rest(), {"idempotency-key": "created once and deleted"}
    made = rest.call("POST", "/v1/workspaces", json={}, headers=headers).json()["id"]
    rest.call("DELETE", f"/v1/workspaces/{made}")
    eventually(lambda: rest.call("GET", f"/v1/workspaces/{made}").status_code == 404, LIMIT_SECONDS)
    again = rest.fails("POST", "/v1/workspaces", json={}, headers=headers)
    assert (again.status, again.slug) == (404, "workspace_not_found")
