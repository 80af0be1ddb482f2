"""The alerts see what only the edge knows: promtool evaluates the metrics of a real Envoy."""

from pathlib import Path

import grpc
import httpx
import pytest
from evershell.workspace.v1 import workspace_service_pb2 as messages
from evershell.workspace.v1 import workspace_service_pb2_grpc
from grpc_health.v1 import health_pb2

from tests.support.alerts import Recorder, promtool
from tests.support.edge.fixtures import short_directory
from tests.support.edge.running_edge import RunningEdge, running_edge
from tests.support.edge.stub import Stub, serving
from tests.support.metrics import read
from tests.support.waiting import eventually

# 10,000 idle agents, whose heartbeats do not pass the edge, and a leading controller.
OTHERS = {
    'evershell_rpc_seconds_count{instance="a",rpc="Heartbeat",outcome="ok"}': "0+15000x60",
    "evershell_cancellations_open": "0x60",
}
# NoHealthyWorkers fires after a minute in its state, CancelTaskFails at once.
SCRAPES = 10
ERRORS_OF_WORKERS = "error_agent_unreachable"


def cancel(edge: RunningEdge, workspace_id: str) -> None:
    """Fails to cancel, over REST and over gRPC."""
    url = f"{edge.rest_url}/v1/workspaces/{workspace_id}/task/cancel"
    headers = {"authorization": "Bearer sk_1"}
    assert httpx.post(url, headers=headers, trust_env=False).status_code == 503
    request = messages.CancelTaskRequest(workspace_id=workspace_id)
    with (
        grpc.insecure_channel(edge.grpc_address) as channel,
        pytest.raises(grpc.RpcError) as failed,
    ):
        workspace_service_pb2_grpc.WorkspaceServiceStub(channel).CancelTask(request)
    assert failed.value.code() is grpc.StatusCode.UNAVAILABLE


def test_workers_that_do_not_serve_fire_the_alerts_of_the_edge(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    promtool("--version")
    stub = Stub()
    with (
        serving(stub) as worker,
        running_edge(short_directory(tmp_path_factory), worker) as edge,
    ):
        recorder = Recorder()
        for _ in range(SCRAPES):
            cancel(edge, ERRORS_OF_WORKERS)
            recorder.add({"edge": read(edge.metrics_url)})
        # The metrics of the workers have these errors.
        recorder.assert_firing(tmp_path, set(), OTHERS)

        stub.set_serving(health_pb2.HealthCheckResponse.NOT_SERVING)
        eventually(lambda: edge.answers(503))
        for _ in range(SCRAPES):
            cancel(edge, "ws_1")
            recorder.add({"edge": read(edge.metrics_url)})
        recorder.assert_firing(tmp_path, {"NoHealthyWorkers", "CancelTaskFails"}, OTHERS)
