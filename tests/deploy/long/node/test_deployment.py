"""The chart of deploy/ on a real node: the programs serve, and tasks are cancelled."""

import json
import logging
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from click.testing import CliRunner

from evershell.cli.main import main
from tests.deploy.long.node.deployment import (
    UPGRADED_MEMORY,
    Deployment,
    forwarded_ports,
    kubectl,
)
from tests.deploy.long.node.pods import GATE, open_gate, pod, running_pod
from tests.deploy.long.node.stacks import LIMIT_SECONDS, NodeWorkspace
from tests.stack.long.canceller import LONG, SHORT, Canceller
from tests.stack.long.load import Caller, GrpcCaller, Load, RestCaller
from tests.support import programs
from tests.support.waiting import eventually

log = logging.getLogger(__name__)

pytestmark = pytest.mark.timeout(400)

# The pause of each caller between two calls.
PAUSE_SECONDS = 0.2


@pytest.fixture
def workspace(deployment: Deployment) -> NodeWorkspace:
    return NodeWorkspace(deployment)


def cancel_over_rest(workspace: NodeWorkspace) -> str:
    return str(workspace.cancel(reason="enough")["outcome"])


def cancel_over_grpc(workspace: NodeWorkspace) -> str:
    call = workspace.service.grpc().call
    return str(call("CancelTask", workspace_id=workspace.id, reason="enough")["outcome"])


def test_cancelled_tasks_finish_their_iteration_and_the_pod_takes_the_next(
    workspace: NodeWorkspace,
) -> None:
    before = pod(workspace, kubectl)
    for cancel in (cancel_over_rest, cancel_over_grpc):
        cancelled = workspace.begin(f"{GATE}; echo finished", "echo never")
        assert cancel(workspace) == "accepted"
        open_gate(workspace, kubectl)
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
    after = running_pod(workspace, kubectl)
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert after["status"]["containerStatuses"][0]["restartCount"] == 0


def test_an_upgrade_loses_no_call_and_can_be_rolled_back(deployment: Deployment) -> None:
    load = Load(PAUSE_SECONDS)
    callers: dict[str, tuple[Caller, dict[str, str]]] = {
        "REST": (RestCaller(deployment), {}),
        "REST, always a new connection": (RestCaller(deployment, keeps_connection=False), {}),
        "gRPC": (GrpcCaller(deployment), {}),
        "gRPC, waits": (GrpcCaller(deployment), {"wait": "10s"}),
    }
    with ThreadPoolExecutor() as pool:
        workspaces = list(pool.map(lambda _: NodeWorkspace(deployment), callers))
    cancellers = [
        Canceller(load, what, caller, workspace, LONG if fields else SHORT, **fields)
        for workspace, (what, (caller, fields)) in zip(workspaces, callers.items(), strict=True)
    ]
    load.watch("stream", RestCaller(deployment), workspaces[0])
    eventually(lambda: all(each.ended for each in cancellers), LIMIT_SECONDS)
    agents = [pod(each, kubectl)["metadata"]["uid"] for each in workspaces]
    ended = [each.ended for each in cancellers]

    deployment.upgrade("workers", "controller")

    eventually(
        lambda: all(each.ended > 1 + n for each, n in zip(cancellers, ended, strict=True)),
        LIMIT_SECONDS,
    )
    load.stop()
    log.info("%s", load.outcomes)
    assert load.outcomes.failures == [], "\n".join(load.outcomes.failures)
    for canceller in cancellers:
        canceller.assert_cancelled()
    assert [pod(each, kubectl)["metadata"]["uid"] for each in workspaces] == agents

    assert requested_memory() == UPGRADED_MEMORY
    deployment.roll_back()
    assert requested_memory() == "128Mi"
    # A roll-back does not run the job that migrates the schema.
    assert kubectl("get", "jobs", "-o", "name") == ""


def test_the_deployment_is_verified(deployment: Deployment) -> None:
    variables = {
        **dict.fromkeys(programs.OVERRIDES),
        **programs.NO_PROFILES,
        "EVERSHELL_URL": f"http://{deployment.ready['grpc_addr']}",
        "EVERSHELL_API_KEY": deployment.tokens["full_access"],
    }
    command = ["verify", "--for", "5s", "--workspaces", "2", "--beside-others"]
    done = CliRunner().invoke(main, command, env=variables)
    assert done.exit_code == 0, done.output


def requested_memory() -> str:
    path = "jsonpath={.spec.template.spec.containers[0].resources.requests.memory}"
    return kubectl("get", "deployment/workers", "-o", path)


def test_the_command_that_ends_an_edge_runs_in_its_pod(deployment: Deployment) -> None:
    path = "jsonpath={.spec.template.spec.containers[0].lifecycle.preStop.exec.command}"
    command = json.loads(kubectl("get", "deployment/edge", "-o", path))
    with deployment.own_edge() as edge, forwarded_ports(edge, 8080) as (port,):
        kubectl("exec", edge, "--", *command[:-1], "0s")
        # From now on, the edge closes each connection after its next answer.
        answer = httpx.get(f"http://127.0.0.1:{port}/healthz", trust_env=False)
        assert answer.headers["connection"] == "close"
