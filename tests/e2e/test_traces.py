"""A trace from the edge to the agent and back into the log of events, and the lines of the logs
that belong together.
"""

import json
import secrets
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from evershell.workspace.v1 import workspace_service_pb2, workspace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.support.otlp import Receiver
from tests.support.stack import Gate, Stack, Workspace
from tests.support.waiting import eventually

PUBLIC = "evershell.workspace.v1.WorkspaceService/"
INTERNAL = "evershell.agent.v1.RuntimeService/"


@pytest.fixture(scope="module")
def receiver() -> Receiver:
    return Receiver()


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory, receiver: Receiver) -> Iterator[Stack]:
    """A stack that sends its spans. It ends without their receiver, and in time."""
    state_dir = tmp_path_factory.mktemp("traced") / "state"
    stack = Stack(
        state_dir, OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url, OTEL_BSP_SCHEDULE_DELAY="100"
    )
    try:
        with receiver.running():
            stack.start()
            yield stack
        assert stack.stop() == 0
    finally:
        stack.kill_if_running()


def new_trace() -> tuple[str, str, str]:
    """A trace's id, a span's id, and both as a header."""
    trace_id, span_id = secrets.token_hex(16), secrets.token_hex(8)
    return trace_id, span_id, f"00-{trace_id}-{span_id}-01"


def submit(workspace: Workspace, traceparent: str, *lines: str) -> str:
    response = workspace.rest.call(
        "POST",
        f"{workspace.path}/tasks",
        json={"description": "\n".join(lines)},
        headers={"traceparent": traceparent},
    )
    task_id: str = response.json()["task_id"]
    return task_id


def cancel(stack: Stack, workspace: Workspace, wire: str, traceparent: str) -> str:
    """Cancels what runs and returns the request's id."""
    if wire == "rest":
        response = workspace.rest.call(
            "POST", f"{workspace.path}/task/cancel", headers={"traceparent": traceparent}
        )
        assert response.status_code == 202
        return response.headers["x-request-id"]
    metadata = (
        ("authorization", f"Bearer {stack.tokens['full_access']}"),
        ("traceparent", traceparent),
    )
    with grpc.insecure_channel(stack.ready["grpc_addr"]) as channel:
        stub = workspace_service_pb2_grpc.WorkspaceServiceStub(channel)
        request = workspace_service_pb2.CancelTaskRequest(workspace_id=workspace.id)
        _, call = stub.CancelTask.with_call(request, metadata=metadata, timeout=20)
        return str(dict(call.trailing_metadata())["x-request-id"])


def traces(workspace: Workspace, task_id: str) -> dict[str, str]:
    """Type of event → trace, of the task's events."""
    found: dict[str, str] = {}
    for message in workspace.rest.events(workspace.id):
        event = message["event"]
        if event["task_id"] == task_id:
            found[event["type"]] = event["trace_id"]
        if event["type"] == "task_completed":
            break
    return found


def lines(stack: Stack, program: str) -> list[dict[str, Any]]:
    """What a program, or all whose names begin so, have logged in JSON."""
    paths = sorted((stack.state_dir / "logs").glob(f"{program}*.log"))
    text = "\n".join(path.read_text() for path in paths)
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def run_to_cancellation(
    stack: Stack, wire: str, submitted: str, cancelled: str
) -> tuple[Workspace, str, str]:
    workspace = Workspace(stack)
    gate = Gate(workspace)
    task_id = submit(workspace, submitted, gate.command, "echo never")
    workspace.await_phase(task_id, "tool_call")
    request_id = cancel(stack, workspace, wire, cancelled)
    gate.open()
    assert workspace.await_end(task_id)["status"] == "cancelled"
    return workspace, task_id, request_id


@pytest.mark.parametrize("wire", ["rest", "grpc"])
def test_a_trace_goes_to_the_agent_and_back_into_the_log(
    traced: Stack, receiver: Receiver, wire: str
) -> None:
    (first, _, submitted), (second, caller_span, cancelled) = new_trace(), new_trace()
    workspace, task_id, request_id = run_to_cancellation(traced, wire, submitted, cancelled)

    seen = traces(workspace, task_id)
    # An agent may learn of its task by a heartbeat, a moment before it is called, and begin.
    assert seen.pop("task_started") in (first, "")
    assert seen == {
        "task_submitted": first,
        "task_cancel_requested": second,
        "iteration_completed": second,
        "task_completed": second,
    }
    commit = INTERNAL + "CommitEvents"
    wanted = {
        PUBLIC + "CancelTask",
        "store.record_cancellation",
        "agent.cancel_task",
        commit,
        "store.transition",
    }
    eventually(lambda: wanted <= {span.name for span in receiver.spans(second)})
    spans = {span.name: span for span in receiver.spans(second)}
    call = spans[PUBLIC + "CancelTask"]
    assert (call.parent_span_id.hex(), call.kind) == (caller_span, Span.SPAN_KIND_SERVER)
    attributes = {each.key: each.value.string_value for each in call.attributes}
    assert attributes["evershell.request_id"] == request_id
    for inner in ("store.record_cancellation", "agent.cancel_task"):
        assert spans[inner].parent_span_id == call.span_id
        assert (
            call.start_time_unix_nano
            <= spans[inner].start_time_unix_nano
            <= spans[inner].end_time_unix_nano
        )
    # The agent commits in the course of the signal.
    assert spans[commit].parent_span_id == spans["agent.cancel_task"].span_id
    assert spans["store.transition"].parent_span_id in {
        span.span_id for span in receiver.spans(second) if span.name == commit
    }
    eventually(
        lambda: (
            {PUBLIC + "SubmitTask", "agent.start_task"}
            <= {span.name for span in receiver.spans(first)}
        )
    )
    assert receiver.services() == {"evershell-control-plane"}


def test_a_call_that_brings_no_trace_begins_one(traced: Stack, receiver: Receiver) -> None:
    workspace = Workspace(traced)
    task_id = workspace.submit("true")
    workspace.await_end(task_id)
    seen = traces(workspace, task_id)
    trace_id = seen["task_submitted"]
    assert len(trace_id) == 32 and set(seen.values()) <= {trace_id, ""}
    # Sent last: it ends after all that it has caused.
    (root,) = eventually(
        lambda: [span for span in receiver.spans(trace_id) if not span.parent_span_id]
    )
    assert root.name == PUBLIC + "SubmitTask"


def test_a_failure_is_told_in_its_span(traced: Stack, receiver: Receiver) -> None:
    trace_id, _, traceparent = new_trace()
    response = traced.rest().call(
        "POST", "/v1/workspaces/ws_unknown/task/cancel", headers={"traceparent": traceparent}
    )
    assert response.status_code == 404
    eventually(lambda: len(receiver.spans(trace_id)) == 2)
    (call,) = (span for span in receiver.spans(trace_id) if span.kind == Span.SPAN_KIND_SERVER)
    attributes = {each.key: each.value.string_value for each in call.attributes}
    # It is the caller's mistake, and no error of the service.
    assert (attributes["evershell.slug"], call.status.code) == ("workspace_not_found", 0)


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
