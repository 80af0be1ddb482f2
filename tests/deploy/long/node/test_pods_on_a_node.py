"""Tasks in pods of a real node: they run, are cancelled through Envoy, and say how they ended."""

import json

import grpc
import pytest
from evershell.agent.v1.runtime_service_pb2 import BootstrapRequest
from evershell.agent.v1.runtime_service_pb2_grpc import RuntimeServiceStub
from evershell.workspace.v1.workspace_service_pb2 import ListWorkspacesRequest
from evershell.workspace.v1.workspace_service_pb2_grpc import WorkspaceServiceStub

from evershell.pod.tls import CONTROL_PLANE
from tests.deploy.long.manifests.tools import kubectl
from tests.deploy.long.node.pods import await_no_pods, pod, running_pod
from tests.deploy.long.node.stacks import NodeWorkspace
from tests.support.stack import Stack

pytestmark = pytest.mark.timeout(400)


@pytest.fixture
def workspace(stack: Stack) -> NodeWorkspace:
    return NodeWorkspace(stack)


def test_a_forced_cancellation_interrupts_the_tool(workspace: NodeWorkspace) -> None:
    task_id = workspace.begin("sleep 600")
    workspace.cancel(force_after="0.5s")
    end = workspace.await_end(task_id)
    assert (end["status"], end["forced"]) == ("cancelled", True)


def test_a_tool_finds_no_secret_that_still_works(stack: Stack, workspace: NodeWorkspace) -> None:
    """The bootstrap token in the spec file is no longer valid.

    Even processes of the agent's user cannot read the agent's memory and environment.
    """
    task_id = workspace.submit(
        "cat /run/evershell/spec.json",
        "cat /proc/1/environ; cat /proc/1/mem; ls /var/run/secrets; id -u; touch /usr/x; kill -9 1",
    )
    workspace.await_end(task_id)
    outputs = [
        event["tool_call"]["result"]["output"]
        for event in workspace.log()
        if event["type"] == "iteration_completed"
    ]
    assert outputs[1].count("Permission denied") >= 2, outputs[1]
    assert "Read-only file system" in outputs[1]
    assert "\n10001\n" in outputs[1]
    assert workspace.get()["status"] == "idle"
    spec = json.loads(outputs[0])
    assert (spec["runtime_secret"], spec["signal_secret"], spec["openai_api_key"]) == ("", "", "")
    with runtime_channel(stack, spec) as channel:
        bearer = (("authorization", f"Bearer {spec['bootstrap_token']}"),)
        with pytest.raises(grpc.RpcError, match="was spent"):
            RuntimeServiceStub(channel).Bootstrap(BootstrapRequest(), metadata=bearer, timeout=5)


def test_a_tool_cannot_call_a_worker_as_a_caller(stack: Stack, workspace: NodeWorkspace) -> None:
    """The tool has its agent's certificate and a caller's API key, and tries to bypass the edge."""
    task_id = workspace.submit("cat /run/evershell/spec.json")
    workspace.await_end(task_id)
    (output,) = [
        event["tool_call"]["result"]["output"]
        for event in workspace.log()
        if event["type"] == "iteration_completed"
    ]
    refused = {
        runtime_channel(stack, json.loads(output)): "only for RuntimeService",
        grpc.insecure_channel(stack.runtime_addresses()[0]): "UNAVAILABLE",
    }
    key = (("authorization", f"Bearer {stack.tokens['full_access']}"),)
    for channel, answer in refused.items():
        with channel, pytest.raises(grpc.RpcError, match=answer):
            WorkspaceServiceStub(channel).ListWorkspaces(
                ListWorkspacesRequest(), metadata=key, timeout=5
            )


def runtime_channel(stack: Stack, spec: dict[str, str]) -> grpc.Channel:
    """A channel to the port for agents, with the certificate in the spec."""
    identity = (spec["tls_trusted"], spec["tls_key"], spec["tls_certificate"])
    credentials = grpc.ssl_channel_credentials(*(each.encode() for each in identity))
    options = [("grpc.ssl_target_name_override", CONTROL_PLANE)]
    return grpc.secure_channel(stack.runtime_addresses()[0], credentials, options=options)


def test_a_stop_ends_the_pod_and_a_resume_finds_the_files(
    stack: Stack, workspace: NodeWorkspace
) -> None:
    written = workspace.submit("echo kept > file; (setsid sleep 900 &)")
    workspace.await_end(written)
    stack.rest().call("POST", f"{workspace.path}/stop")
    workspace.await_status("stopped")
    await_no_pods(workspace)
    stack.rest().call("POST", f"{workspace.path}/resume")
    workspace.await_status("idle")
    assert pod(workspace)["metadata"]["name"].endswith("-2")
    read = workspace.submit("cat file")
    assert workspace.await_end(read)["status"] == "completed"
    (output,) = [
        event["tool_call"]["result"]["output"]
        for event in workspace.log()
        if event["type"] == "iteration_completed" and event["task_id"] == read
    ]
    assert output == "kept\n"


@pytest.mark.parametrize("is_cancelled", [False, True])
def test_a_pod_that_others_delete_reports_how_its_task_ended(
    workspace: NodeWorkspace, is_cancelled: bool
) -> None:
    task_id = workspace.begin("sleep 600")
    if is_cancelled:
        workspace.cancel()
    # Draining a node deletes its pods in the same way.
    kubectl("delete", "pod", running_pod(workspace)["metadata"]["name"], "--wait=false")
    end = workspace.await_end(task_id)
    assert end["status"] == ("cancelled" if is_cancelled else "failed")
    assert end["work_stopped"] == "yes"
    failed = workspace.await_status("failed")
    assert "its pod" in failed["status_reason"], failed
    await_no_pods(workspace)
