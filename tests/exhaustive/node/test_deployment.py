"""The manifests of deploy/ on a real node: the programs serve, and tasks are cancelled."""

import pytest

from tests.exhaustive.node.deployment import Deployment
from tests.support.service import ServiceWorkspace

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def workspace(deployment: Deployment) -> ServiceWorkspace:
    return ServiceWorkspace(deployment)


def cancel_over_rest(workspace: ServiceWorkspace) -> str:
    return str(workspace.cancel(reason="enough")["outcome"])


def cancel_over_grpc(workspace: ServiceWorkspace) -> str:
    call = workspace.service.grpc().call
    return str(call("CancelTask", workspace_id=workspace.id, reason="enough")["outcome"])


def test_cancelled_tasks_finish_their_iteration_and_the_pod_takes_the_next(
    deployment: Deployment, workspace: ServiceWorkspace
) -> None:
    (before,) = deployment.pods(workspace.id)
    for cancel in (cancel_over_rest, cancel_over_grpc):
        cancelled = workspace.submit("sleep 2; echo finished", "echo never")
        workspace.await_phase(cancelled, "tool_call")
        assert cancel(workspace) == "accepted"
        end = workspace.await_end(cancelled)
        assert (end["status"], end["iterations"], end["reason"]) == ("cancelled", 1, "enough")
        (iteration,) = [
            event["tool_call"]["result"]["output"]
            for event in workspace.log()
            if event["type"] == "iteration_completed" and event["task_id"] == cancelled
        ]
        assert iteration == "finished\n"
    following = workspace.submit("echo $((6 * 7))")
    assert workspace.await_end(following)["status"] == "completed"
    (after,) = deployment.pods(workspace.id)
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert after["status"]["containerStatuses"][0]["restartCount"] == 0
