"""The manifests of deploy/ on a real node: the programs serve, and tasks are cancelled."""

import json
import logging
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.exhaustive.e2e.canceller import LONG, SHORT, Canceller
from tests.exhaustive.e2e.load import Caller, GrpcCaller, Load, RestCaller
from tests.exhaustive.node.deployment import Deployment, kubectl
from tests.support.service import ServiceWorkspace
from tests.support.waiting import eventually

log = logging.getLogger(__name__)

pytestmark = pytest.mark.timeout(400)

LIMIT_SECONDS = 120.0
# The pause of each caller between two calls.
PAUSE_SECONDS = 0.2


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


def test_an_image_that_cannot_be_pulled(deployment: Deployment) -> None:
    rest = deployment.rest()
    with deployment.environment("controller", POD_IMAGE="localhost/none:1", POD_START_SECONDS="8"):
        path = f"/v1/workspaces/{rest.post('/v1/workspaces', {'name': 'test'}, 201)['id']}"
        eventually(lambda: rest.get(path)["status"] == "failed", LIMIT_SECONDS)
        reason = rest.get(path)["status_reason"]
        assert reason.startswith(
            "its agent did not register within 8 s: its image cannot be pulled"
        )
        assert "localhost/none:1" in reason
    rest.post(f"{path}/resume")
    eventually(lambda: rest.get(path)["status"] == "idle", LIMIT_SECONDS)


def test_a_rolling_update_loses_no_call(deployment: Deployment) -> None:
    deployment.scale("workers", 2)
    load = Load(PAUSE_SECONDS)
    callers: dict[str, tuple[Caller, dict[str, str]]] = {
        "REST": (RestCaller(deployment), {}),
        "REST, always a new connection": (RestCaller(deployment, keeps_connection=False), {}),
        "gRPC": (GrpcCaller(deployment), {}),
        "gRPC, waits": (GrpcCaller(deployment), {"wait": "10s"}),
    }
    with ThreadPoolExecutor() as pool:
        workspaces = list(pool.map(lambda _: ServiceWorkspace(deployment), callers))
    cancellers = [
        Canceller(load, what, caller, workspace, LONG if fields else SHORT, **fields)
        for workspace, (what, (caller, fields)) in zip(workspaces, callers.items(), strict=True)
    ]
    load.watch("stream", RestCaller(deployment), workspaces[0])
    eventually(lambda: all(each.ended for each in cancellers))
    agents = [pod["metadata"]["uid"] for each in workspaces for pod in deployment.pods(each.id)]
    ended = [each.ended for each in cancellers]

    deployment.restart("workers", "controller")

    eventually(lambda: all(each.ended > 1 + n for each, n in zip(cancellers, ended, strict=True)))
    load.stop()
    log.info("%s", load.outcomes)
    assert load.outcomes.failures == [], "\n".join(load.outcomes.failures)
    for canceller in cancellers:
        canceller.assert_cancelled()
    after = [pod["metadata"]["uid"] for each in workspaces for pod in deployment.pods(each.id)]
    assert after == agents


def test_the_command_that_ends_an_edge_runs_in_its_pod(deployment: Deployment) -> None:
    """It is the last test: from now on, each answer of the edge closes its connection."""
    path = "jsonpath={.spec.template.spec.containers[0].lifecycle.preStop.exec.command}"
    command = json.loads(kubectl("get", "deployment/edge", "-o", path))
    kubectl("exec", "deployment/edge", "--", *command[:-1], "0s")
    with httpx.Client(base_url=deployment.ready["rest_url"], trust_env=False) as client:
        assert client.get("/healthz").headers["connection"] == "close"
