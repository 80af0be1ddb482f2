"""Exports spans by OTLP over HTTP. This module is imported only if an exporter is configured.

The exporter, the sampler and the resource are configured by the standard environment variables
(OTEL_…).
"""

import inspect
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from evershell.core import trace
from evershell.core.errors import AgentUnreachableError, UnavailableError
from evershell.core.trace import TraceContext

# The time limit of each export of a batch of spans.
_FLUSH_MILLISECONDS = 1_000
Inner = TypeVar("Inner")
_LOGGERS = (
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    # Warns when the queue of spans is full.
    "opentelemetry.sdk._shared_internal",
)


class Tracing:
    """Creates spans. A span is a child of `trace.current()` and replaces it until the span ends."""

    def __init__(self, program: str) -> None:
        limit_export_warnings()
        has_name = bool(os.environ.get("OTEL_SERVICE_NAME"))
        resource = Resource.create({} if has_name else {SERVICE_NAME: f"evershell-{program}"})
        # `close` shuts the provider down, with a time limit.
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        exporter = OTLPSpanExporter(timeout=_FLUSH_MILLISECONDS / 1000)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("evershell")

    @contextmanager
    def span(self, name: str, kind: SpanKind, **attributes: str) -> Iterator[Span]:
        """Runs the body within a new span, which ends with the body, even if the body raises."""
        span = self._tracer.start_span(name, _parent(trace.current()), kind, attributes)
        created = span.get_span_context()
        context = trace.current()
        # With OTEL_SDK_DISABLED, the span has no valid context, so the current context stays.
        if created.is_valid:
            context = TraceContext(
                f"{created.trace_id:032x}", f"{created.span_id:016x}", f"{created.trace_flags:02x}"
            )
        try:
            with trace.within(context):
                yield span
        finally:
            span.end()

    def traced(self, inner: Inner, prefix: str, kind: SpanKind = SpanKind.CLIENT) -> Inner:
        """Wraps a port, so that each call that is part of a trace gets a span."""
        return cast(Inner, _Traced(inner, self, prefix, kind))

    def close(self) -> None:
        """Exports the remaining spans. Blocks for at most _FLUSH_MILLISECONDS for each batch."""
        self._provider.force_flush(_FLUSH_MILLISECONDS)
        self._provider.shutdown()


class _Traced:
    def __init__(self, inner: object, tracing: Tracing, prefix: str, kind: SpanKind) -> None:
        self._inner = inner
        self._tracing = tracing
        self._prefix = prefix
        self._kind = kind

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)
        if not inspect.iscoroutinefunction(method):
            return method
        traced = self._around(name, method)
        setattr(self, name, traced)
        return traced

    def _around(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        async def traced(*arguments: Any, **named: Any) -> Any:
            if trace.current() is None:
                return await method(*arguments, **named)
            with self._tracing.span(f"{self._prefix}.{name}", self._kind) as span:
                try:
                    return await method(*arguments, **named)
                except (UnavailableError, AgentUnreachableError) as error:
                    span.set_status(Status(StatusCode.ERROR, type(error).__name__))
                    raise

        return traced


def _parent(context: TraceContext | None) -> Context:
    if context is None:
        return Context()
    flags = TraceFlags(int(context.flags, 16))
    remote = SpanContext(
        int(context.trace_id, 16), int(context.span_id, 16), is_remote=True, trace_flags=flags
    )
    return set_span_in_context(NonRecordingSpan(remote), Context())


class _Rarely(logging.Filter):
    """Passes one record a minute, as a warning."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        super().__init__()
        self._monotonic = monotonic
        self._passed_at: float | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        now = self._monotonic()
        if self._passed_at is not None and now - self._passed_at < 60.0:
            return False
        self._passed_at = now
        record.levelno, record.levelname = logging.WARNING, "WARNING"
        record.exc_info = None
        return True


def limit_export_warnings(monotonic: Callable[[], float] = time.monotonic) -> None:
    """Limits each logger of the exporter, in this process, to one warning a minute."""
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        for earlier in [each for each in logger.filters if isinstance(each, _Rarely)]:
            logger.removeFilter(earlier)
        logger.addFilter(_Rarely(monotonic))
