"""Spans around calls, and no spans if tracing is off."""

import logging

import pytest
from opentelemetry.trace import SpanKind

from evershell.core import trace
from evershell.core.errors import UnavailableError
from evershell.core.trace import TraceContext
from evershell.telemetry.tracing import Tracing, limit_export_warnings
from tests.support.otlp import Receiver

CALLER = TraceContext("a" * 32, "b" * 16)
UNRECORDED = TraceContext("c" * 32, "b" * 16, "00")


class Port:
    """A port of the core whose calls are traced."""

    async def succeed(self) -> str:
        return trace.current_id()

    async def fail(self) -> None:
        raise UnavailableError("10.0.0.7")


async def test_each_call_within_a_recorded_trace_has_a_span(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    receiver = Receiver()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
    with receiver.running():
        tracing = Tracing("test")
        port = tracing.traced(Port(), "port")
        assert await port.succeed() == ""
        with trace.within(CALLER):
            assert await port.succeed() == CALLER.trace_id
            with pytest.raises(UnavailableError):
                await port.fail()
            assert trace.current() == CALLER
        with trace.within(UNRECORDED):
            assert await port.succeed() == UNRECORDED.trace_id
        tracing.close()
    spans = {span.name: span for span in receiver.spans(CALLER.trace_id)}
    assert set(spans) == {"port.succeed", "port.fail"}
    assert {span.parent_span_id.hex() for span in spans.values()} == {CALLER.span_id}
    # The text of an error may contain internal addresses, so spans contain only its type.
    assert (spans["port.fail"].status.code, spans["port.fail"].status.message) == (
        2,
        "UnavailableError",
    )
    assert receiver.spans(UNRECORDED.trace_id) == []
    assert receiver.services() == {"evershell-test"}


async def test_a_disabled_sdk_forwards_the_callers_trace_and_starts_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    tracing = Tracing("test")
    with tracing.span("call", SpanKind.SERVER):
        assert trace.current() is None
    with trace.within(CALLER), tracing.span("call", SpanKind.SERVER):
        assert trace.current() == CALLER
    tracing.close()


def test_a_collector_that_is_down_causes_one_warning_a_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = [0.0]
    limit_export_warnings(lambda: now[0])
    logger = logging.getLogger("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    for now[0] in (0.0, 5.0, 59.0, 60.0, 61.0):
        logger.error("Failed to export spans batch at %s", now[0])
    assert [(record.levelname, record.args) for record in caplog.records] == [
        ("WARNING", (0.0,)),
        ("WARNING", (60.0,)),
    ]
