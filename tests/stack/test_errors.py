"""Calls that are refused because of the state of the workspace, on a real stack.

The other refusals are cells of the matrix (test_matrix.py).
"""

import grpc
from evershell.workspace.v1 import error_pb2

from tests.support.alive import is_alive
from tests.support.stack import Gate, Stack, Workspace
from tests.support.waiting import eventually
from tests.support.wires import Failed

RULES = {
    value.name: value.GetOptions().Extensions[error_pb2.rule]
    for value in error_pb2.Error.ErrorCode.DESCRIPTOR.values
}
GRPC_CODES = {code.value[0]: code for code in grpc.StatusCode}


def cancel_fails(stack: Stack, slug: str, workspace_id: str) -> tuple[Failed, Failed]:
    """Makes a call over REST and gRPC. Checks that both fail in the same way and are logged."""
    both = both_fail(stack, slug, workspace_id)
    for failed in both:
        assert_logged(stack, failed)
    return both


def both_fail(stack: Stack, slug: str, workspace_id: str) -> tuple[Failed, Failed]:
    rest = stack.rest().fails("POST", f"/v1/workspaces/{workspace_id}/task/cancel")
    rpc = stack.grpc().fails("CancelTask", workspace_id=workspace_id)
    assert (rest.slug, rpc.slug) == (slug, slug)
    assert rest.message == rpc.message
    assert rest.status == RULES[slug].http
    assert rpc.status == GRPC_CODES[RULES[slug].grpc]
    return rest, rpc


def assert_logged(stack: Stack, failed: Failed) -> None:
    """Waits until a worker has logged the failed call, which it does after it has responded."""
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
    # Checks the logs only now, because the supervisor, which writes them, was frozen too.
    for failed in both:
        assert_logged(stack, failed)
    assert_precondition(*both, created["id"])


def test_a_stopped_workspace_refuses_a_cancellation(stack: Stack, workspace: Workspace) -> None:
    pid = stack.agent_pid(workspace.id)
    assert workspace.rest.post(f"{workspace.path}/stop")["status"] == "stopping"
    workspace.await_status("stopped")
    assert not is_alive(pid)
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
    # After the freeze, the agent reads the call, but does not run the task, which has ended.
    assert workspace.await_end(workspace.submit("ls"))["status"] == "completed"
    assert not (stack.files(workspace.id) / "ran").exists()
    assert workspace.task(task_id)["status"] == "delivery_failed"
    assert stack.agent_pid(workspace.id) == pid
