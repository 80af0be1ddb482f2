"""The metrics of a whole stack: workers, fleet controllers and Envoy."""

from tests.support.metrics import await_metrics, scrape
from tests.support.stack import Gate, Stack, Workspace
from tests.support.waiting import eventually

# The metrics ports of the two workers and the two controllers, as offsets from METRICS_ADDRESS.
# Envoy's port has offset 3.
PROGRAMS = (0, 1, 2, 4)


def total(stack: Stack, name: str, **labels: str) -> float:
    """Returns the sum of a metric's samples from the workers and controllers."""
    return sum(scrape(stack, index).get((name, frozenset(labels.items())), 0) for index in PROGRAMS)


def test_a_cancellation_is_counted(stack: Stack, workspace: Workspace) -> None:
    def counts() -> list[float]:
        calls, signals = "evershell_rpc_seconds_count", "evershell_agent_signal_seconds_count"
        return [
            total(stack, calls, rpc="CancelTask", outcome="ok"),
            total(stack, calls, rpc="CancelTask", outcome="workspace_not_found"),
            total(stack, signals, rpc="CancelTask", result="ok"),
            total(stack, signals, rpc="StartTask", result="ok"),
            total(stack, "evershell_cancel_to_end_seconds_count", forced="false"),
        ]

    await_metrics(stack, PROGRAMS[-1])
    before = counts()
    gate = Gate(workspace)
    task_id = workspace.submit(gate.command, "echo never")
    workspace.await_phase(task_id, "tool_call")
    # Freezes the controllers: they would signal the agent again after 2 s, which would be counted.
    with stack.frozen("fleet"):
        workspace.cancel()
        stack.grpc().call("CancelTask", workspace_id=workspace.id)
        assert workspace.rest.fails("POST", "/v1/workspaces/ws_unknown/task/cancel").status == 404
        gate.open()
        assert workspace.await_end(task_id)["status"] == "cancelled"

    # The programs count a call after the caller has got the response.
    wanted = [old + more for old, more in zip(before, (2, 1, 2, 1, 1), strict=True)]
    eventually(lambda: counts() == wanted)
    assert total(stack, "evershell_database_connections", state="idle") >= 2
    ids = {workspace.id, task_id, stack.ready["demo"]["org_id"]}
    labels = {
        value for index in PROGRAMS for _, pairs in scrape(stack, index) for _, value in pairs
    }
    assert not ids & labels
