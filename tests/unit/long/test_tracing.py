"""Tracing when no collector answers."""

import threading

import pytest
from opentelemetry.trace import SpanKind

from evershell.core import trace
from evershell.core.trace import TraceContext
from evershell.telemetry.tracing import Tracing

CALLER = TraceContext("a" * 32, "b" * 16)


def test_an_unavailable_collector_does_not_block_the_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    # The program has its own, shorter limit.
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "600")
    tracing = Tracing("test")
    with trace.within(CALLER), tracing.span("call", SpanKind.SERVER):
        pass
    closing = threading.Thread(target=tracing.close, daemon=True)
    closing.start()
    closing.join(15)
    assert not closing.is_alive()
