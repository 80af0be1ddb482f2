"""Pods on a real node that end in ways nobody asked for: the state, the reason, and the truth."""

import json
from typing import Any

import pytest

from tests.exhaustive.deploy.tools import kubectl
from tests.exhaustive.node import node
from tests.exhaustive.node.conftest import pod, pods, running_pod
from tests.support.stack import Stack, Workspace
from tests.support.waiting import eventually

pytestmark = pytest.mark.timeout(400)

LIMIT_SECONDS = 120.0
OUT_OF_MEMORY = "its agent ran out of memory (its limit is 128Mi)"


@pytest.fixture
def workspace(stack: Stack) -> Workspace:
    return Workspace(stack)


def busy(workspace: Workspace, *, is_cancelled: bool) -> str:
    """Submits a task that runs until its pod ends, and cancels it. Returns its id."""
    task_id = workspace.submit("sleep 600")
    workspace.await_phase(task_id, "tool_call")
    if is_cancelled:
        assert workspace.cancel(reason="enough")["outcome"] == "accepted"
    return task_id


def ended(workspace: Workspace, task_id: str) -> dict[str, Any]:
    """The payload of `task_completed`, once the workspace has failed."""
    eventually(lambda: workspace.get()["status"] == "failed", LIMIT_SECONDS)
    return workspace.await_end(task_id)


def assert_truth(workspace: Workspace, task_id: str, reason: str, work_stopped: str) -> None:
    """The workspace failed for this reason, and its task ended."""
    end = ended(workspace, task_id)
    assert end["work_stopped"] == work_stopped, end
    assert reason in workspace.get()["status_reason"]
    assert reason in end["reason"]
    was_cancelled = "cancel_requested_at" in workspace.task(task_id)
    assert end["status"] == ("cancelled" if was_cancelled else "failed")


@pytest.mark.parametrize("is_cancelled", [False, True])
def test_an_agent_that_is_killed(workspace: Workspace, is_cancelled: bool) -> None:
    node.require_shell()
    task_id = busy(workspace, is_cancelled=is_cancelled)
    node.kill_agent(running_pod(workspace.id))
    assert_truth(workspace, task_id, "its agent was killed by SIGKILL", "yes")


@pytest.mark.parametrize("is_cancelled", [False, True])
def test_a_pod_that_is_evicted(workspace: Workspace, is_cancelled: bool) -> None:
    task_id = busy(workspace, is_cancelled=is_cancelled)
    evict(pod(workspace.id)["metadata"])
    assert_truth(workspace, task_id, "as in the drain of a node", "yes")


def evict(metadata: dict[str, Any]) -> None:
    """Calls the eviction API, as `kubectl drain` does."""
    is_old = "policy/v1" not in kubectl("api-versions").split()
    eviction = {
        "apiVersion": "policy/v1beta1" if is_old else "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": metadata["name"], "namespace": metadata["namespace"]},
    }
    path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}/eviction"
    kubectl("create", "--raw", path, "-f", "-", given=json.dumps(eviction))


@pytest.mark.parametrize("is_cancelled", [False, True])
def test_a_pod_that_is_out_of_memory(workspace: Workspace, is_cancelled: bool) -> None:
    """The files in /dev/shm count as the pod's memory, and no process of the tool has them. So
    the kernel kills the largest process, the agent.
    """
    task_id = workspace.submit(
        "until [ -e go ]; do sleep 0.1; done; "
        "head -c 60M /dev/zero >/dev/shm/a; for i in $(seq 9); do "
        "(head -c 12M /dev/zero; sleep 600) | tail & done; sleep 600",
    )
    workspace.await_phase(task_id, "tool_call")
    if is_cancelled:
        workspace.cancel(reason="enough")
    kubectl("exec", pod(workspace.id)["metadata"]["name"], "--", "touch", "go")
    assert_truth(workspace, task_id, OUT_OF_MEMORY, "yes")


def test_a_tool_that_is_out_of_memory(workspace: Workspace) -> None:
    """The tool call has failed, and the task goes on. Newer kubelets end the whole pod instead."""
    task_id = workspace.submit("python3 -c 'bytearray(1 << 30)'", "echo next")
    if workspace.await_end(task_id)["status"] == "failed":
        assert_truth(workspace, task_id, OUT_OF_MEMORY, "yes")
        return
    first, second = (
        event["tool_call"]["result"]
        for event in workspace.log()
        if event["type"] == "iteration_completed"
    )
    assert first["exit_code"] == 137
    assert second["output"] == "next\n"


def test_a_silent_node(stack: Stack) -> None:
    """Nobody knows what still runs there. What agents report themselves is known."""
    node.require_shell()
    failed, cancelled, forced, stopped = (Workspace(stack) for _ in range(4))
    tasks = {each.id: busy(each, is_cancelled=False) for each in (failed, cancelled, forced)}
    cancelled.cancel(reason="enough")
    lost = [running_pod(each.id) for each in (failed, cancelled)]
    with node.silent_kubelet():
        with node.frozen(*lost):
            stack.rest().call("POST", f"{stopped.path}/stop")
            assert forced.cancel(reason="enough", force_after="1s")["outcome"] == "accepted"
            end = forced.await_end(tasks[forced.id])
            assert (end["status"], end["forced"]) == ("cancelled", True)
            assert end["work_stopped"] == "yes"
            assert forced.get()["status"] == "idle"
            reason = (
                "its agent did not renew its lease in time: the node of its pod does not answer"
            )
            for each in (failed, cancelled):
                assert_truth(each, tasks[each.id], reason, "unknown")
            eventually(lambda: stopped.get()["status"] == "stopped", LIMIT_SECONDS)
        # The objects are there, and say nothing about what runs.
        assert all(pods(each.id) for each in (failed, cancelled, stopped))
    # The kubelet catches up, which takes a loaded machine its time.
    eventually(
        lambda: not any(pods(each.id) for each in (failed, cancelled, stopped)), LIMIT_SECONDS
    )
