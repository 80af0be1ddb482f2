"""The spans of a stack that exports them."""

from collections.abc import Iterator

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.support.otlp import Receiver
from tests.support.stack import Stack, Workspace
from tests.support.traces import PUBLIC, new_trace, run_to_cancellation, traces
from tests.support.waiting import eventually

INTERNAL = "evershell.agent.v1.RuntimeService/"


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
    (first, _, submitted), (second, caller_span, cancelled) = new_trace(), new_trace()
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
    # The agent's commit belongs to the trace of the signal.
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
    # This span is exported last, because it ends after its children.
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
    # A refused request is not an error of the service.
    assert (attributes["evershell.slug"], call.status.code) == ("workspace_not_found", 0)
