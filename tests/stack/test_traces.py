"""Traces from Envoy through the agent to the event log, and the log lines of a call."""

import json
from typing import Any

import pytest

from tests.stack.traces import PUBLIC, cancel, new_trace, run_to_cancellation, traces
from tests.support.stack import Stack, Workspace
from tests.support.waiting import eventually


def lines(stack: Stack, program: str) -> list[dict[str, Any]]:
    """Returns the JSON log lines of all programs whose name begins with `program`."""
    paths = sorted((stack.state_dir / "logs").glob(f"{program}*.log"))
    # A program may be writing its last line.
    found = [line for path in paths for line in path.read_text().split("\n")[:-1]]
    return [json.loads(line) for line in found if line.startswith("{")]


@pytest.mark.parametrize("wire", ["rest", "grpc"])
def test_a_trace_is_passed_on_without_an_exporter_of_spans(stack: Stack, wire: str) -> None:
    (first, _, submitted), (second, _, cancelled) = new_trace(), new_trace()
    workspace, task_id, _ = run_to_cancellation(stack, wire, submitted, cancelled)
    seen = traces(workspace, task_id)
    assert (seen["task_submitted"], seen["task_cancel_requested"], seen["task_completed"]) == (
        first,
        second,
        second,
    )
    untraced = workspace.submit("true")
    workspace.await_end(untraced)
    log = [entry for entry in workspace.log() if entry["task_id"] == untraced]
    assert log and not any("trace_id" in entry for entry in log)


@pytest.mark.parametrize("wire", ["rest", "grpc"])
def test_a_call_has_one_log_line_in_envoy_and_one_in_its_worker(
    stack: Stack, workspace: Workspace, wire: str
) -> None:
    """Both log lines have the same request id."""
    trace_id, _, traceparent = new_trace()
    request_id = cancel(stack, workspace, wire, traceparent)

    def of_the_call(program: str) -> list[dict[str, Any]]:
        return [line for line in lines(stack, program) if line.get("request_id") == request_id]

    # Envoy buffers its log and writes it at intervals.
    (edge,) = eventually(lambda: of_the_call("envoy"), 20)
    (worker,) = eventually(lambda: of_the_call("worker-"))
    assert edge["event"] == "edge_call" and edge["path"].endswith(
        "/cancel" if wire == "rest" else "/CancelTask"
    )
    assert (worker["method"], worker["trace_id"]) == ("/" + PUBLIC + "CancelTask", trace_id)
