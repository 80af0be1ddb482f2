"""The spans of a stack that exports spans."""

from collections.abc import Iterator

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.stack.traces import PUBLIC, new_trace, run_to_cancellation, traces
from tests.support.otlp import Receiver
from tests.support.stack import Stack
from tests.support.waiting import eventually

INTERNAL = "evershell.agent.v1.RuntimeService/"
REQUEST_ID = "guid:x-request-id"
# `run_to_cancellation` submits the task over REST even if it cancels the task over gRPC.
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
    """A stack that exports spans. It must stop in time even after the collector has ended."""
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
    # The event has no trace if the reply to a heartbeat delivers the task before StartTask does.
    assert seen.pop("task_started") in (first, "")
    assert seen == {
        "task_submitted": first,
        "task_cancel_requested": second,
        "iteration_completed": second,
        "task_completed": second,
    }
    names = EDGE_NAMES[wire]
    call = PUBLIC + "CancelTask"
    # The spans from the caller to the agent, and from the agent's commit to the database.
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


def assert_tree(spans: list[Span], root: str) -> None:
    """Checks that the spans form a tree, whose topmost span has the parent `root`."""
    ids = {span.span_id.hex() for span in spans}
    assert len(ids) == len(spans)
    outside = [span.parent_span_id.hex() for span in spans if span.parent_span_id.hex() not in ids]
    assert outside == [root]


def assert_chain(
    receiver: Receiver, trace_id: str, parent: str, chain: tuple[tuple[str, str], ...]
) -> None:
    """Checks that each span is the parent of the next one.

    The first span has the parent `parent`.
    """
    for wanted in chain:
        (span,) = (
            span
            for (service, span) in receiver.of(trace_id)
            if (service, span.name, span.parent_span_id.hex()) == (*wanted, parent)
        )
        parent = span.span_id.hex()


def attributes_of(span: Span) -> dict[str, str]:
    return {each.key: each.value.string_value for each in span.attributes}
