"""Makes calls that belong to a trace, and reads the traces of the events that follow."""

import secrets

import grpc
from evershell.workspace.v1 import workspace_service_pb2, workspace_service_pb2_grpc

from tests.support.stack import Gate, Stack, Workspace

PUBLIC = "evershell.workspace.v1.WorkspaceService/"


def new_trace() -> tuple[str, str, str]:
    """Returns a new trace id, a span id, and the header that contains both."""
    trace_id, span_id = secrets.token_hex(16), secrets.token_hex(8)
    return trace_id, span_id, f"00-{trace_id}-{span_id}-01"


def submit(workspace: Workspace, traceparent: str, *lines: str) -> str:
    response = workspace.rest.call(
        "POST",
        f"{workspace.path}/tasks",
        json={"description": "\n".join(lines)},
        headers={"traceparent": traceparent},
    )
    task_id: str = response.json()["task_id"]
    return task_id


def cancel(stack: Stack, workspace: Workspace, wire: str, traceparent: str) -> str:
    """Cancels the current task and returns the request id."""
    if wire == "rest":
        response = workspace.rest.call(
            "POST", f"{workspace.path}/task/cancel", headers={"traceparent": traceparent}
        )
        assert response.status_code == 202
        return response.headers["x-request-id"]
    metadata = (
        ("authorization", f"Bearer {stack.tokens['full_access']}"),
        ("traceparent", traceparent),
    )
    with grpc.insecure_channel(stack.ready["grpc_addr"]) as channel:
        stub = workspace_service_pb2_grpc.WorkspaceServiceStub(channel)
        request = workspace_service_pb2.CancelTaskRequest(workspace_id=workspace.id)
        _, call = stub.CancelTask.with_call(request, metadata=metadata, timeout=20)
        return str(dict(call.trailing_metadata())["x-request-id"])


def traces(workspace: Workspace, task_id: str) -> dict[str, str]:
    """Maps the type of each event of the task to the event's trace id."""
    found: dict[str, str] = {}
    for message in workspace.rest.events(workspace.id):
        event = message["event"]
        if event["task_id"] == task_id:
            found[event["type"]] = event["trace_id"]
        if event["type"] == "task_completed":
            break
    return found


def run_to_cancellation(
    stack: Stack, wire: str, submitted: str, cancelled: str
) -> tuple[Workspace, str, str]:
    workspace = Workspace(stack)
    gate = Gate(workspace)
    task_id = submit(workspace, submitted, gate.command, "echo never")
    workspace.await_phase(task_id, "tool_call")
    request_id = cancel(stack, workspace, wire, cancelled)
    gate.open()
    assert workspace.await_end(task_id)["status"] == "cancelled"
    return workspace, task_id, request_id
