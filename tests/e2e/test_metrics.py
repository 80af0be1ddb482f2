"""The metrics of a whole stack: the workers', the fleet controller's, and Envoy's."""

from collections.abc import Iterator

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from server.stack import postgres
from tests.support.ports import free_ports
from tests.support.stack import Gate, Stack, Workspace
from tests.support.waiting import eventually

# By how far their ports are behind METRICS_PORT.
WORKER, FLEET = PROGRAMS = (0, 1)

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = Stack(
        tmp_path_factory.mktemp("measured") / "state",
        WORKERS="1",
        METRICS_PORT=str(free_ports(2)[0]),
    )
    try:
        stack.start()
        yield stack
        assert stack.stop() == 0
    finally:
        stack.kill_if_running()


def scrape(stack: Stack, index: int) -> Samples:
    text = httpx.get(f"http://127.0.0.1:{stack.metrics_port + index}/metrics", trust_env=False).text
    families = text_string_to_metric_families(text)
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def total(stack: Stack, name: str, **labels: str) -> float:
    """Over all programs."""
    return sum(scrape(stack, index).get((name, frozenset(labels.items())), 0) for index in PROGRAMS)


def test_a_cancellation_is_seen_in_the_metrics(measured: Stack) -> None:
    workspace = Workspace(measured)
    gate = Gate(workspace)
    task_id = workspace.submit(gate.command, "echo never")
    workspace.await_phase(task_id, "tool_call")
    workspace.cancel()
    measured.grpc().call("CancelTask", workspace_id=workspace.id)
    assert workspace.rest.fails("POST", "/v1/workspaces/ws_unknown/task/cancel").status == 404
    gate.open()
    assert workspace.await_end(task_id)["status"] == "cancelled"

    assert total(measured, "evershell_rpc_seconds_count", rpc="CancelTask", outcome="ok") == 2
    assert (
        total(
            measured, "evershell_rpc_seconds_count", rpc="CancelTask", outcome="workspace_not_found"
        )
        == 1
    )
    assert (
        total(measured, "evershell_agent_signal_seconds_count", rpc="CancelTask", result="ok") == 2
    )
    assert (
        total(measured, "evershell_agent_signal_seconds_count", rpc="StartTask", result="ok") == 1
    )
    # It is counted behind the commit, which others see first.
    eventually(
        lambda: total(measured, "evershell_cancel_to_end_seconds_count", forced="false") == 1
    )
    assert total(measured, "evershell_database_connections", state="idle") >= 2
    ids = {workspace.id, task_id, measured.ready["demo"]["org_id"]}
    labels = {
        value for index in PROGRAMS for _, pairs in scrape(measured, index) for _, value in pairs
    }
    assert not ids & labels


def test_the_backlog_is_seen_at_the_fleet_controller(measured: Stack) -> None:
    def read(name: str, **labels: str) -> float | None:
        return scrape(measured, FLEET).get((f"evershell_{name}", frozenset(labels.items())))

    workspace = Workspace(measured)
    gate = Gate(workspace)
    task_id = workspace.submit(gate.command, "echo never")
    workspace.await_phase(task_id, "tool_call")
    workspace.cancel()
    eventually(lambda: read("cancellations_open") == 1)
    eventually(lambda: (read("cancellations_oldest_seconds") or 0) > 0)
    # The controller delivers it once more, in case the agent has missed it.
    eventually(lambda: read("cancel_redeliveries_total", result="acknowledged"))
    gate.open()
    assert workspace.await_end(task_id)["status"] == "cancelled"
    eventually(lambda: read("cancellations_open") == 0)
    eventually(lambda: (read("workspaces", status="idle") or 0) >= 2)


def test_an_agent_that_is_lost_ends_a_cancellation_in_the_fleets_metrics(measured: Stack) -> None:
    workspace = Workspace(measured)
    task_id = workspace.submit("sleep 60")
    workspace.await_phase(task_id, "tool_call")
    workspace.cancel()
    measured.kill(measured.agent_pid(workspace.id))
    assert workspace.await_end(task_id)["status"] == "cancelled"
    key = ("evershell_cancel_to_end_seconds_count", frozenset({("forced", "false")}))
    eventually(lambda: scrape(measured, FLEET).get(key, 0) == 1)


def test_the_edges_metrics_are_on_its_own_socket(measured: Stack) -> None:
    socket = postgres.places(measured.state_dir).socket_dir / "envoy.sock"
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(socket)), trust_env=False) as client:
        text = client.get("http://envoy/stats/prometheus").text
    assert "envoy_http_downstream_rq_total" in text
