"""Which calls get a span, and what the spans contain."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import grpc
import pytest
from opentelemetry.trace import SpanKind, StatusCode

from evershell.api.call import Call
from evershell.api.interceptors.interceptor import Method
from evershell.api.interceptors.traced_calls import TracedCalls
from evershell.core import trace
from evershell.core.trace import TraceContext
from evershell.telemetry.tracing import Tracing

PUBLIC = Method("evershell.workspace.v1.WorkspaceService", "CancelTask", bytes, is_stream=False)
INTERNAL = Method("evershell.agent.v1.RuntimeService", "Heartbeat", bytes, is_stream=False)
HEALTH = Method("grpc.health.v1.Health", "Check", bytes, is_stream=False)
CONTINUED = TraceContext("a" * 32, "b" * 16)
CREATED = TraceContext("c" * 32, "d" * 16)


class Span:
    def __init__(self, name: str, attributes: dict[str, str]) -> None:
        self.name = name
        self.attributes = attributes
        self.status: StatusCode | None = None

    def set_attribute(self, name: str, value: str) -> None:
        self.attributes[name] = value

    def set_status(self, status: Any) -> None:
        self.status = status.status_code


class Spans:
    """Records the spans, in place of `Tracing`."""

    def __init__(self) -> None:
        self.opened: list[Span] = []

    @contextmanager
    def span(self, name: str, kind: SpanKind, **attributes: str) -> Iterator[Span]:
        assert kind is SpanKind.SERVER
        span = Span(name, attributes)
        self.opened.append(span)
        with trace.within(CREATED):
            yield span


async def spans_of(
    method: Method, parent: TraceContext | None, slug: str = ""
) -> tuple[list[Span], Call]:
    spans = Spans()

    async def proceed(call: Call) -> str:
        call.slug = slug
        if slug:
            raise grpc.aio.AbortError
        return "reply"

    call = Call(cast(Any, None), metadata={}, request_id="req_7", is_rest=False)
    serve = TracedCalls(cast(Tracing, spans)).wrap(method, proceed)
    with trace.within(parent):
        if slug:
            with pytest.raises(grpc.aio.AbortError):
                await serve(call)
        else:
            assert await serve(call) == "reply"
    return spans.opened, call


@pytest.mark.parametrize(
    ("method", "parent", "count"),
    [
        (PUBLIC, None, 1),
        (PUBLIC, CONTINUED, 1),
        (INTERNAL, None, 0),
        (INTERNAL, CONTINUED, 1),
        (HEALTH, None, 0),
        (HEALTH, CONTINUED, 0),
    ],
)
async def test_calls_of_callers_and_those_that_continue_a_trace_get_a_span(
    method: Method, parent: TraceContext | None, count: int
) -> None:
    spans, call = await spans_of(method, parent)
    assert [span.name for span in spans] == [f"{method.service}/{method.name}"] * count
    assert call.trace_id == (CREATED.trace_id if count else "")
    for span in spans:
        assert span.attributes["evershell.request_id"] == "req_7"
        assert span.status is None


@pytest.mark.parametrize(
    ("slug", "status"), [("workspace_not_found", None), ("unavailable", StatusCode.ERROR)]
)
async def test_the_span_of_a_failed_call_has_its_slug(slug: str, status: StatusCode | None) -> None:
    ((span,), _) = await spans_of(PUBLIC, None, slug)
    assert (span.attributes["evershell.slug"], span.status) == (slug, status)
