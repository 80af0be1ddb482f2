"""RuntimeService.ExportSpans takes the spans of agents within bounds."""

from collections.abc import Callable

import pytest
from evershell.agent.v1.runtime_service_pb2 import ExportSpansRequest, ExportSpansResponse, Span

from evershell.server.api.agent_spans import MAX_SPANS, decode_spans
from evershell.server.core.errors import Failure
from tests.api.running import INTERNAL, Running, agent_bearer


def span(**changes: object) -> Span:
    fields = {
        "trace_id": "a" * 32,
        "span_id": "b" * 16,
        "name": "commit",
        "start_unix_nanos": 1,
        "end_unix_nanos": 2,
    }
    return Span(**(fields | changes))  # type: ignore[arg-type]


def test_a_span_is_decoded() -> None:
    (found,) = decode_spans(
        [span(parent_span_id="c" * 16, attributes={"key": "value"}, failed=True)]
    )
    assert (found.trace_id, found.span_id) == (int("a" * 32, 16), int("b" * 16, 16))
    assert found.parent_span_id == int("c" * 16, 16)
    assert (found.began_at, found.ended_at, found.has_failed) == (1, 2, True)
    assert found.attributes == {"key": "value"}
    (root,) = decode_spans([span()])
    assert (root.parent_span_id, root.has_failed) == (0, False)


def test_texts_and_attributes_are_cut() -> None:
    attributes = {f"{number:03}{'k' * 500}": "v" * 500 for number in range(100)}
    (found,) = decode_spans([span(name="n" * 500, attributes=attributes)])
    assert len(found.name) == 200 and len(found.attributes) == 16
    assert {len(text) for pair in found.attributes.items() for text in pair} == {200}


@pytest.mark.parametrize(
    "make",
    [
        lambda: [span()] * (MAX_SPANS + 1),
        lambda: [span(trace_id="a" * 31)],
        lambda: [span(trace_id="0" * 32)],
        lambda: [span(span_id="")],
        lambda: [span(span_id="0x" + "b" * 14)],
        lambda: [span(span_id="bbbbbbbb_bbbbbbb")],
        lambda: [span(parent_span_id="x" * 16)],
        lambda: [span(start_unix_nanos=3)],
        lambda: [span(start_unix_nanos=-1)],
    ],
)
def test_other_spans_are_refused(make: Callable[[], list[Span]]) -> None:
    with pytest.raises(Failure) as raised:
        decode_spans(make())
    assert raised.value.slug == "validation_error"


async def test_a_control_plane_without_an_exporter_takes_spans_too(server: Running) -> None:
    request = ExportSpansRequest(spans=[span()]).SerializeToString()
    reply = await server.raw(INTERNAL + "ExportSpans", agent_bearer("ws_1"), request)
    assert reply == ExportSpansResponse().SerializeToString()
