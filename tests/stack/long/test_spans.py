"""The spans of a stack that exports them."""

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.support.otlp import Receiver
from tests.support.stack import Gate, Stack, Workspace
from tests.support.traces import PUBLIC, new_trace, run_to_cancellation, traces
from tests.support.waiting import eventually

INTERNAL = "evershell.agent.v1.RuntimeService/"
REQUEST_ID = "guid:x-request-id"
# `run_to_cancellation` submits over REST.
SUBMITTED = {"SubmitTask": "POST /v1/workspaces/*/tasks"}
EDGE_NAMES = {
    "rest": SUBMITTED | {"CancelTask": "POST /v1/workspaces/*/task/cancel"},
    "grpc": SUBMITTED | {"CancelTask": PUBLIC + "CancelTask"},
}


@pytest.fixture(scope="module")
def receiver() -> Receiver:
    return Receiver()


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory, receiver: Receiver) -> Iterator[Stack]:
    """A stack that exports spans. It stops in time even if the collector is down."""
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


@pytest.mark.parametrize("wire", ["rest", "grpc"])
def test_a_trace_goes_to_the_agent_and_back_into_the_log(
    traced: Stack, receiver: Receiver, wire: str
) -> None:
    (first, caller_of_submit, submitted), (second, caller_span, cancelled) = (
        new_trace(),
        new_trace(),
    )
    workspace, task_id, request_id = run_to_cancellation(traced, wire, submitted, cancelled)

    seen = traces(workspace, task_id)
    # The reply to a heartbeat may deliver the task before the call does.
    assert seen.pop("task_started") in (first, "")
    assert seen == {
        "task_submitted": first,
        "task_cancel_requested": second,
        "iteration_completed": second,
        "task_completed": second,
    }
    names = EDGE_NAMES[wire]
    call = PUBLIC + "CancelTask"
    # From the caller to the agent, and from the agent's commit to the database.
    chain = (
        ("evershell-edge", names["CancelTask"]),
        ("evershell-control-plane", call),
        ("evershell-control-plane", "agent.cancel_task"),
        ("evershell-control-plane", INTERNAL + "CommitEvents"),
        ("evershell-control-plane", "store.transition"),
    )
    eventually(lambda: set(chain) <= set(receiver.names(second)))
    assert_tree(receiver.spans(second), caller_span)
    assert_chain(receiver, second, caller_span, chain)
    spans = {(service, span.name): span for service, span in receiver.of(second)}
    edge, worker = spans[chain[0]], spans[chain[1]]
    recorded = spans["evershell-control-plane", "store.record_cancellation"]
    assert recorded.parent_span_id == worker.span_id
    assert {edge.kind, worker.kind} == {Span.SPAN_KIND_SERVER}
    assert attributes_of(edge)[REQUEST_ID] == request_id
    assert attributes_of(worker)["evershell.request_id"] == request_id
    submit = {
        ("evershell-edge", names["SubmitTask"]),
        ("evershell-control-plane", PUBLIC + "SubmitTask"),
    }
    eventually(lambda: submit <= set(receiver.names(first)))
    assert_tree(receiver.spans(first), caller_of_submit)
    assert receiver.services() == {"evershell-edge", "evershell-control-plane"}


def test_calls_of_no_worker_have_no_span(traced: Stack, receiver: Receiver) -> None:
    traced.rest().call("GET", "/nowhere")
    health = f"{traced.ready['rest_url']}/openapi.yaml"
    assert httpx.get(health, trust_env=False).status_code == 200
    # The next call is exported after these.
    trace_id, _, traceparent = new_trace()
    traced.rest().call("GET", "/v1/workspaces", headers={"traceparent": traceparent})
    eventually(lambda: ("evershell-edge", "GET /v1/workspaces") in receiver.names(trace_id))
    edge = [name for service, name in receiver.names() if service == "evershell-edge"]
    assert all(name.startswith(("POST /v1/", "GET /v1/", PUBLIC)) for name in edge)


@pytest.mark.soak
def test_a_collector_that_is_down_causes_a_warning_and_nothing_else(tmp_path: Path) -> None:
    # Nothing listens on port 1.
    stack = Stack(
        tmp_path / "state",
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1",
        OTEL_BSP_SCHEDULE_DELAY="100",
    )
    started = time.monotonic()
    with stack.started():
        workspace = Workspace(stack)
        gate = Gate(workspace)
        for _ in range(5):
            task_id = workspace.begin(gate.command, "echo never")
            assert workspace.cancel()["outcome"] == "accepted"
            gate.open()
            assert workspace.await_end(task_id)["status"] == "cancelled"
        logs = stack.state_dir / "logs"
        warnings = eventually(
            lambda: [
                line
                for path in logs.glob("worker-*.log")
                for line in path.read_text().split("\n")[:-1]
                if "library_message" in line
            ]
        )
        # At most one of each worker in a minute.
        minutes = 1 + (time.monotonic() - started) // 60
        assert len(warnings) <= 2 * minutes and all(
            '"level": "warning"' in line for line in warnings
        )
        assert "otlp" not in (logs / "envoy.log").read_text().lower()


def assert_tree(spans: list[Span], root: str) -> None:
    """Every span is below the only one whose parent is `root`."""
    ids = {span.span_id.hex() for span in spans}
    assert len(ids) == len(spans)
    outside = [span.parent_span_id.hex() for span in spans if span.parent_span_id.hex() not in ids]
    assert outside == [root]


def assert_chain(
    receiver: Receiver, trace_id: str, parent: str, chain: tuple[tuple[str, str], ...]
) -> None:
    """Each is the parent of the next. The parent of the first is `parent`."""
    for wanted in chain:
        (span,) = (
            span
            for (service, span) in receiver.of(trace_id)
            if (service, span.name, span.parent_span_id.hex()) == (*wanted, parent)
        )
        parent = span.span_id.hex()


def attributes_of(span: Span) -> dict[str, str]:
    return {each.key: each.value.string_value for each in span.attributes}


def test_a_call_that_brings_no_trace_begins_one(traced: Stack, receiver: Receiver) -> None:
    workspace = Workspace(traced)
    task_id = workspace.submit("true")
    workspace.await_end(task_id)
    seen = traces(workspace, task_id)
    trace_id = seen["task_submitted"]
    assert len(trace_id) == 32 and set(seen.values()) <= {trace_id, ""}
    # This span is exported last, because it ends after its children.
    (root,) = eventually(
        lambda: [span for span in receiver.spans(trace_id) if not span.parent_span_id]
    )
    assert root.name == "POST /v1/workspaces/*/tasks"


def test_a_failure_is_told_in_its_span(traced: Stack, receiver: Receiver) -> None:
    trace_id, _, traceparent = new_trace()
    response = traced.rest().call(
        "POST", "/v1/workspaces/ws_unknown/task/cancel", headers={"traceparent": traceparent}
    )
    assert response.status_code == 404
    eventually(lambda: len(receiver.spans(trace_id)) == 3)
    (call,) = (span for span in receiver.spans(trace_id) if span.name == PUBLIC + "CancelTask")
    attributes = attributes_of(call)
    # A refused request is not an error of the service.
    assert (attributes["evershell.slug"], call.status.code) == ("workspace_not_found", 0)
