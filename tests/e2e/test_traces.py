"""A trace from the edge to the agent and back into the log of events, and the lines of the logs
that belong together.
"""

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.support.stack import Stack, Workspace
from tests.support.traces import PUBLIC, cancel, new_trace, run_to_cancellation, traces
from tests.support.waiting import eventually


def lines(stack: Stack, program: str) -> list[dict[str, Any]]:
    """What a program, or all whose names begin so, have logged in JSON."""
    paths = sorted((stack.state_dir / "logs").glob(f"{program}*.log"))
    text = "\n".join(path.read_text() for path in paths)
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


@pytest.mark.parametrize("wire", ["rest", "grpc"])
def test_a_trace_is_passed_on_where_no_spans_are_sent(stack: Stack, wire: str) -> None:
    (first, _, submitted), (second, _, cancelled) = new_trace(), new_trace()
    workspace, task_id, _ = run_to_cancellation(stack, wire, submitted, cancelled)
    seen = traces(workspace, task_id)
    assert (seen["task_submitted"], seen["task_cancel_requested"], seen["task_completed"]) == (
        first,
        second,
        second,
    )
    quiet = workspace.submit("true")
    workspace.await_end(quiet)
    log = [entry for entry in workspace.log() if entry["task_id"] == quiet]
    assert log and not any("trace_id" in entry for entry in log)


@pytest.mark.parametrize("wire", ["rest", "grpc"])
def test_a_call_has_one_line_at_the_edge_and_one_in_its_worker(
    stack: Stack, workspace: Workspace, wire: str
) -> None:
    """The request's id joins them."""
    trace_id, _, traceparent = new_trace()
    request_id = cancel(stack, workspace, wire, traceparent)

    def of_the_call(program: str) -> list[dict[str, Any]]:
        return [line for line in lines(stack, program) if line.get("request_id") == request_id]

    # Envoy writes its lines now and then.
    (edge,) = eventually(lambda: of_the_call("envoy"), 20)
    (worker,) = of_the_call("worker-")
    assert edge["event"] == "edge_call" and edge["path"].endswith(
        "/cancel" if wire == "rest" else "/CancelTask"
    )
    assert (worker["method"], worker["trace_id"]) == ("/" + PUBLIC + "CancelTask", trace_id)


def test_a_worker_that_sends_no_spans_does_not_even_load_what_would() -> None:
    program = "import sys, server.bootstrap; sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=30).returncode == 0
